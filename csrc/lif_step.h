// One LIF neuron through one step of the continuous scheme: the same algorithm as ranvier/crossing.py.
//
// S is the type of the state: a plain number R, or Dual<R>, which carries the derivatives for the five numbers that a
// spike time depends on (v, i at the start of the step and the bucket's three moments). Branches look at values only,
// and the root is found on values: its derivative is put in by one implicit step, as in the reference.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace ranvier {

constexpr int kSpikesPerStep = 4;
constexpr int kIterations = 10;
constexpr double kSlopeFloor = 1e-6;

// A value and its derivatives for (v, i, JI, JV, JQ).
template <class R>
struct Dual {
  static constexpr int kN = 5;
  R x;
  R d[kN];
  Dual() : x(0), d{} {}
  Dual(R value) : x(value), d{} {}  // NOLINT: a number is a constant
  static Dual variable(R value, int k) {
    Dual out(value);
    out.d[k] = R(1);
    return out;
  }
  template <class F>
  static Dual make(R value, F&& f) {
    Dual out(value);
    for (int k = 0; k < kN; ++k) out.d[k] = f(k);
    return out;
  }
  friend Dual operator+(const Dual& a, const Dual& b) {
    return make(a.x + b.x, [&](int k) { return a.d[k] + b.d[k]; });
  }
  friend Dual operator-(const Dual& a, const Dual& b) {
    return make(a.x - b.x, [&](int k) { return a.d[k] - b.d[k]; });
  }
  friend Dual operator-(const Dual& a) {
    return make(-a.x, [&](int k) { return -a.d[k]; });
  }
  friend Dual operator*(const Dual& a, const Dual& b) {
    return make(a.x * b.x, [&](int k) { return a.x * b.d[k] + a.d[k] * b.x; });
  }
  friend Dual operator/(const Dual& a, const Dual& b) {
    const R y = a.x / b.x;
    return make(y, [&](int k) { return (a.d[k] - y * b.d[k]) / b.x; });
  }
};

template <class R>
R value(R a) {
  return a;
}
template <class R>
R value(const Dual<R>& a) {
  return a.x;
}
template <class R>
R exp_(R a) {
  return std::exp(a);
}
template <class R>
Dual<R> exp_(const Dual<R>& a) {
  const R y = std::exp(a.x);
  return Dual<R>::make(y, [&](int k) { return y * a.d[k]; });
}
template <class R>
R sqrt_(R a) {
  return std::sqrt(a);
}
template <class R>
Dual<R> sqrt_(const Dual<R>& a) {
  const R y = std::sqrt(a.x);
  return Dual<R>::make(y, [&](int k) { return a.d[k] / (2 * y); });
}
// q(h) = (exp(c h) - 1) / c (Eq. 2) and its inverse.
template <class R>
R q_(R h, R c) {
  return c == 0 ? h : std::expm1(c * h) / c;
}
template <class R>
Dual<R> q_(const Dual<R>& h, R c) {
  const R y = q_(h.x, c);
  return Dual<R>::make(y, [&](int k) { return (1 + c * y) * h.d[k]; });
}
template <class R>
R time_of_q(R y, R c) {
  return c == 0 ? y : std::log1p(c * y) / c;
}
template <class R>
Dual<R> time_of_q(const Dual<R>& y, R c) {
  return Dual<R>::make(time_of_q(y.x, c), [&](int k) { return y.d[k] / (1 + c * y.x); });
}
// The same value, the derivative `slope` times that of `a`, which has value 0 in effect: x - (a - value(a)) / rate.
template <class R>
R implicit(R x, R, R) {
  return x;
}
template <class R>
Dual<R> implicit(R x, const Dual<R>& level, R rate) {
  return Dual<R>::make(x, [&](int k) { return -level.d[k] / rate; });
}

template <class R>
struct Membrane {
  R tau_mem, tau_syn, v_th, c;
  template <class S>
  void flow(const S& v, const S& i, const S& h, S& v_out, S& i_out) const {
    const S decay = exp_(-h / S(tau_syn));
    v_out = v * exp_(-h / S(tau_mem)) + i * decay * q_(h, c);
    i_out = i * decay;
  }
  R slope(R v, R i) const { return i - v / tau_mem; }

  // Time and height of the highest voltage of the free flow from (v, i) within [0, length] (Eq. 11).
  void top(R v, R i, R length, R& h, R& height) const {
    R v_end, i_end;
    flow(v, i, length, v_end, i_end);
    const R rises = slope(v, i);
    h = length;
    height = v_end;
    if (rises > 0 && slope(v_end, i_end) < 0) {
      R y = tau_mem * rises / (i + c * v);
      if (!(c * y > -1)) y = 0;
      h = std::min(std::max(time_of_q(y, c), R(0)), length);
      flow(v, i, h, height, i_end);
    }
  }
};

template <class S>
struct Kicks {
  S x1, x2, w1, w2;
};

// Where a neuron is inside the step.
template <class S>
struct Progress {
  S s, v, i, v_end;
  bool first, second;
};

// Two equal kicks with the moments of the arrivals (Eq. 7), or the whole at the start of the step (Eq. 8).
template <class S, class R>
Kicks<S> stand_in(const S& ji, const S& jv, const S& jq, const Membrane<R>& m, R dt, Progress<S>& at) {
  const R longest = q_(dt, m.c);
  const R rounding = 64 * std::numeric_limits<R>::epsilon();
  const bool some = value(ji) != 0;
  const S mean = some ? jv / ji : S(R(0));
  const bool inside = some && value(mean) >= -rounding * longest && value(mean) <= (1 + rounding) * longest;
  if (!inside) {
    at.i = at.i + ji * S(std::exp(dt / m.tau_syn));
    at.v = at.v + (jv - ji * S(longest)) * S(std::exp(dt / m.tau_mem));
    const S end{R(dt - time_of_q(R(0.5) * longest, m.c))};
    return {end, end, S(R(0)), S(R(0))};
  }
  const S square = jq / ji;
  const S variance = square - mean * mean;
  S spread(R(0));
  if (value(variance) > rounding * std::abs(value(square))) {
    spread = sqrt_(variance);
    const S room = value(mean) < longest - value(mean) ? mean : S(longest) - mean;
    if (value(room) < value(spread)) spread = room;
  }
  const S h1 = time_of_q(mean + spread, m.c), h2 = time_of_q(mean - spread, m.c);
  const S half = S(R(0.5)) * ji;
  return {S(dt) - h1, S(dt) - h2, half * exp_(h1 / S(m.tau_syn)), half * exp_(h2 / S(m.tau_syn))};
}

// The crossing within (t, high] of the flow from (v, i) at t: Newton's steps inside a shrinking bracket.
template <class R>
R newton(R t, R v, R i, R high, const Membrane<R>& m) {
  R low = 0, v_x, i_x;
  high -= t;
  m.flow(v, i, high, v_x, i_x);
  R x = std::min(std::max(high * (m.v_th - v) / (v_x > v ? v_x - v : R(1)), R(0)), high);
  for (int k = 0; k < kIterations; ++k) {
    m.flow(v, i, x, v_x, i_x);
    if (v_x >= m.v_th)
      high = x;
    else
      low = x;
    const R slope = m.slope(v_x, i_x);
    const R step = x - (v_x - m.v_th) / (slope > 0 ? slope : R(1));
    const R before = x;
    x = slope > 0 && step >= low && step <= high ? step : R(0.5) * (low + high);
    if (x == before) break;  // nothing moves any more
  }
  return t + x;
}

// The first crossing after `at` (Eq. 9 to 14); on true `g` is its time and `at` the state just after the reset.
template <class S, class R>
bool next_spike(Progress<S>& at, const Kicks<S>& kicks, const S& i_end, const Membrane<R>& m, R dt, S& g) {
  S t[4], v[3], i[3];
  t[0] = at.s;
  t[1] = at.first ? kicks.x1 : at.s;
  t[2] = at.second ? kicks.x2 : t[1];
  t[3] = S(dt);
  v[0] = at.v;
  i[0] = at.i;
  int piece = 0;
  R high = 0;
  bool fired = false;
  for (; piece < 3; ++piece) {
    const R begin = value(t[piece]), end = value(t[piece + 1]);
    R h, v_top;
    m.top(value(v[piece]), value(i[piece]), std::max(end - begin, R(0)), h, v_top);
    const bool over = value(v[piece]) >= m.v_th;
    fired = (v_top >= m.v_th || over) && (end > begin || over);
    if (fired) {
      high = begin + h;
      break;
    }
    if (piece == 2) break;
    m.flow(v[piece], i[piece], t[piece + 1] - t[piece], v[piece + 1], i[piece + 1]);
    if (piece == 0 && at.first) i[1] = i[1] + kicks.w1;
    if (piece == 1 && at.second) i[2] = i[2] + kicks.w2;
  }
  if (!fired) return false;
  if (piece == 0 && value(at.v) >= m.v_th) {
    g = at.s;
    at.v = at.v - S(m.v_th);
  } else {
    const R root = newton(value(t[piece]), value(v[piece]), value(i[piece]), high, m);
    // behind the last kick the state is that of the end of the step moved back
    const bool last = piece == 2;
    const S t0 = last ? S(dt) : t[piece], v0 = last ? at.v_end : v[piece], i0 = last ? i_end : i[piece];
    S v_g, i_g;
    m.flow(v0, i0, S(root) - t0, v_g, i_g);
    const R rate = std::max(m.slope(value(v_g), value(i_g)), R(kSlopeFloor));
    g = implicit(root, v_g, rate);
    m.flow(v0, i0, g - t0, v_g, i_g);
    at.v = S(R(0));
    at.i = i_g;
    at.first = at.first && piece < 1;
    at.second = at.second && piece < 2;
  }
  at.s = g;
  at.v_end = at.v_end - S(m.v_th) * exp_((g - S(dt)) / S(m.tau_mem));
  return true;
}

// All spikes of a step: their number, times `g`; `v_end` with resets; `still` if more than kSpikesPerStep.
template <class S, class R>
int spikes_of_step(const S& v, const S& i, const S& ji, const S& jv, const S& jq, const Membrane<R>& m, R dt,
                   bool single, S* g, S& v_end, bool& still) {
  Progress<S> at{S(R(0)), v, i, S(R(0)), true, true};
  S i_end;
  m.flow(v, i, S(dt), at.v_end, i_end);
  at.v_end = at.v_end + jv;
  i_end = i_end + ji;
  const Kicks<S> kicks = stand_in(ji, jv, jq, m, dt, at);
  int n = 0;
  still = false;
  while (n < (single ? 1 : kSpikesPerStep) && next_spike(at, kicks, i_end, m, dt, g[n])) {
    ++n;
    if (!(value(at.v_end) >= m.v_th)) break;
    still = n == kSpikesPerStep;
  }
  v_end = at.v_end;
  return n;
}

// Whether the step needs a look (Eq. 12); as ranvier.crossing.may_fire.
template <class R>
bool may_fire(R v, R i, R v_end, R i_end, const Membrane<R>& m, R dt) {
  if (v_end >= m.v_th || v >= m.v_th) return true;
  R h, height;
  m.top(v, i, dt, h, height);
  if (height >= m.v_th) return true;
  if (!(m.slope(v_end, i_end) < 0)) return false;
  R v_back, i_back;
  m.flow(v_end, i_end, -dt, v_back, i_back);
  if (v_back >= m.v_th) return true;
  m.top(v_back, i_back, dt, h, height);
  return height >= m.v_th;
}

}  // namespace ranvier
