// One LIF neuron through one step of the continuous scheme: the same algorithm as ranvier/crossing.py.
//
// S is the type of the state: a plain number R, or Dual<R, K>, which carries the derivatives for what a spike time
// depends on: v, i at the start of the step, the bucket's three moments (K = 5), and tau_mem, tau_syn, v_th (K = 8).
// Branches look at values only, and the root is found on values: its derivative is put in by one implicit step, as in
// the reference.
#pragma once
#include "arrival.h"
#include "host_device.h"

namespace ranvier {
inline namespace RANVIER_TARGET {

constexpr int kSpikesPerStep = 4;
constexpr int kIterations = 10;
constexpr double kSlopeFloor = 1e-6;
// Places of the parameters among the derivatives.
constexpr int kTauMem = 5, kTauSyn = 6, kThreshold = 7;

template <class R, int K>
struct Dual {
  R x;
  R d[K];
  Dual() = default;
  RANVIER_HD Dual(R value) : x(value) {  // NOLINT: a number is a constant
    RANVIER_UNROLL
    for (int k = 0; k < K; ++k) d[k] = R(0);
  }
  RANVIER_HD static Dual variable(R value, int k) {
    Dual out(value);
    out.d[k] = R(1);
    return out;
  }
  // The number `value` with the derivatives a.d * da + b.d * db.
  RANVIER_HD static Dual chain(R value, const Dual& a, R da, const Dual& b, R db) {
    Dual out;
    out.x = value;
    RANVIER_UNROLL
    for (int k = 0; k < K; ++k) out.d[k] = a.d[k] * da + b.d[k] * db;
    return out;
  }
  RANVIER_HD static Dual chain(R value, const Dual& a, R da) {
    Dual out;
    out.x = value;
    RANVIER_UNROLL
    for (int k = 0; k < K; ++k) out.d[k] = a.d[k] * da;
    return out;
  }
  RANVIER_HD friend Dual operator+(const Dual& a, const Dual& b) { return chain(a.x + b.x, a, R(1), b, R(1)); }
  RANVIER_HD friend Dual operator-(const Dual& a, const Dual& b) { return chain(a.x - b.x, a, R(1), b, R(-1)); }
  RANVIER_HD friend Dual operator*(const Dual& a, const Dual& b) { return chain(a.x * b.x, a, b.x, b, a.x); }
  RANVIER_HD friend Dual operator/(const Dual& a, const Dual& b) {
    const R y = a.x / b.x;
    return chain(y, a, 1 / b.x, b, -y / b.x);
  }
};

template <class R>
RANVIER_HD R value(R a) {
  return a;
}
template <class R, int K>
RANVIER_HD R value(const Dual<R, K>& a) {
  return a.x;
}
template <class R>
RANVIER_HD R sqrt_(R a) {
  return std::sqrt(a);
}
template <class R, int K>
RANVIER_HD Dual<R, K> sqrt_(const Dual<R, K>& a) {
  const R y = std::sqrt(a.x);
  return Dual<R, K>::chain(y, a, R(0.5) / y);
}
// Adds the derivative `slope` for parameter `k`; plain numbers have none.
template <class R>
RANVIER_HD void add_partial(R&, int, R) {}
template <class R, int K>
RANVIER_HD void add_partial(Dual<R, K>& a, int k, R slope) {
  if (k < K) a.d[k] += slope;
}
template <class S>
struct HasParameters {
  static constexpr bool value = false;
};
template <class R>
struct HasParameters<Dual<R, 8>> {
  static constexpr bool value = true;
};

// A quotient that only steers a search or corrects a small error.
RANVIER_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
RANVIER_HD double quotient(double a, double b) { return a / b; }
// exp(x) for the moderate x of a step.
RANVIER_HD float exp_(float x) {
#if defined(__CUDA_ARCH__)
  return __expf(x);
#else
  return std::exp(x);
#endif
}
RANVIER_HD double exp_(double x) { return std::exp(x); }
template <class R, int K>
RANVIER_HD Dual<R, K> quotient(const Dual<R, K>& a, const Dual<R, K>& b) {
  return a / b;
}

// phi(x) = (exp(x) - 1) / x to rounding; the series covers what steps need.
RANVIER_HD float phi(float x) {
  if (std::fabs(x) < float(kNearest)) return phi_near(x);
#if defined(__CUDA_ARCH__)
  return __fdividef(__expf(x) - 1, x);  // no cancellation that far out, and no branch: both sides are short
#else
  return std::expm1(x) / x;
#endif
}
RANVIER_HD double phi(double x) {
  if (std::fabs(x) < kNearest) return phi_near(x);
  return std::expm1(x) / x;
}
// phi'(x), as synapse.py has it.
template <class R>
RANVIER_HD R slope_of_phi(R x) {
  if (std::fabs(x) < R(0.5)) {
    R sum = R(0.5), power = 1, factorial = 2;
    for (int n = 1; n < 13; ++n) {
      power *= x;
      factorial *= n + 2;
      sum += power * (R(n + 1) / factorial);
    }
    return sum;
  }
  return ((x - 1) * std::exp(x) + 1) / (x * x);
}

template <class R>
struct Membrane {
  R tau_mem, tau_syn, v_th, c, rate_mem, rate_syn;
  Membrane() = default;
  RANVIER_HD Membrane(R tau_mem, R tau_syn, R v_th)
      : tau_mem(tau_mem),
        tau_syn(tau_syn),
        v_th(v_th),
        c(1 / tau_syn - 1 / tau_mem),
        rate_mem(1 / tau_mem),
        rate_syn(1 / tau_syn) {}

  // exp(-h / tau_syn), exp(-h / tau_mem) and q(h) (Eq. 2).
  RANVIER_HD void decays(R h, R& syn, R& mem, R& y) const {
    const R x = c * h;
    syn = exp_(-h * rate_syn);
    y = h * phi(x);
    mem = std::fabs(x) < R(0.5) ? syn * (1 + c * y) : exp_(-h * rate_mem);
  }
  // d q(h) / d c
  RANVIER_HD R q_slope(R h) const { return h * h * slope_of_phi(c * h); }

  // (v, i) a time h later (Eq. 4).
  RANVIER_HD void flow(const R& v, const R& i, const R& h, R& v_out, R& i_out) const {
    R syn, mem, y;
    decays(h, syn, mem, y);
    i_out = i * syn;
    v_out = v * mem + i_out * y;
  }
  template <int K>
  RANVIER_HD void flow(const Dual<R, K>& v, const Dual<R, K>& i, const Dual<R, K>& h, Dual<R, K>& v_out,
                       Dual<R, K>& i_out) const {
    using D = Dual<R, K>;
    R syn, mem, y;
    decays(h.x, syn, mem, y);
    const R i_x = i.x * syn, v_x = v.x * mem + i_x * y, rise = slope(v_x, i_x);
    D v_new = D::chain(v_x, v, mem, i, syn * y), i_new = D::chain(i_x, i, syn, h, -i_x * rate_syn);
    RANVIER_UNROLL
    for (int k = 0; k < K; ++k) v_new.d[k] += rise * h.d[k];
    if constexpr (HasParameters<D>::value) {
      const R bend = i_x * q_slope(h.x);
      v_new.d[kTauMem] += (v.x * mem * h.x + bend) * rate_mem * rate_mem;
      v_new.d[kTauSyn] += (i_x * y * h.x - bend) * rate_syn * rate_syn;
      i_new.d[kTauSyn] += i_x * h.x * rate_syn * rate_syn;
    }
    v_out = v_new, i_out = i_new;
  }
  RANVIER_HD R slope(R v, R i) const { return i - v * rate_mem; }

  RANVIER_HD R q(R h) const { return h * phi(c * h); }
  template <int K>
  RANVIER_HD Dual<R, K> q(const Dual<R, K>& h) const {
    const R y = q(h.x);
    auto out = Dual<R, K>::chain(y, h, 1 + c * y);
    if constexpr (HasParameters<Dual<R, K>>::value) add_c(out, q_slope(h.x));
    return out;
  }
  // The h with q(h) = y.
  RANVIER_HD R time_of_q(R y) const { return c == 0 ? y : quotient(std::log1p(c * y), c); }
  template <int K>
  RANVIER_HD Dual<R, K> time_of_q(const Dual<R, K>& y) const {
    const R h = time_of_q(y.x), rate = 1 / (1 + c * y.x);
    auto out = Dual<R, K>::chain(h, y, rate);
    if constexpr (HasParameters<Dual<R, K>>::value) add_c(out, -q_slope(h) * rate);
    return out;
  }
  // exp(h / tau_syn) and exp(h / tau_mem)
  RANVIER_HD R grow_syn(R h) const { return exp_(h * rate_syn); }
  RANVIER_HD R grow_mem(R h) const { return exp_(h * rate_mem); }
  template <int K>
  RANVIER_HD Dual<R, K> grow_syn(const Dual<R, K>& h) const {
    const R y = grow_syn(h.x);
    auto out = Dual<R, K>::chain(y, h, y * rate_syn);
    add_partial(out, kTauSyn, -y * h.x * rate_syn * rate_syn);
    return out;
  }
  template <int K>
  RANVIER_HD Dual<R, K> grow_mem(const Dual<R, K>& h) const {
    const R y = grow_mem(h.x);
    auto out = Dual<R, K>::chain(y, h, y * rate_mem);
    add_partial(out, kTauMem, -y * h.x * rate_mem * rate_mem);
    return out;
  }
  template <class S>
  RANVIER_HD S threshold() const {
    S out(v_th);
    add_partial(out, kThreshold, R(1));
    return out;
  }

  // Time and height of the highest voltage of the free flow from (v, i) within [0, length] (Eq. 11), given its end.
  RANVIER_HD void top(R v, R i, R length, R v_end, R i_end, R& h, R& height) const {
    const R rises = slope(v, i);
    h = length;
    height = v_end;
    if (rises > 0 && slope(v_end, i_end) < 0) {
      R y = quotient(tau_mem * rises, i + c * v);
      if (!(c * y > -1)) y = 0;
      h = min_(max_(time_of_q(y), R(0)), length);
      R unused;
      flow(v, i, h, height, unused);
    }
  }

 private:
  template <int K>
  RANVIER_HD void add_c(Dual<R, K>& out, R slope) const {
    add_partial(out, kTauMem, slope * rate_mem * rate_mem);
    add_partial(out, kTauSyn, -slope * rate_syn * rate_syn);
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
RANVIER_HD Kicks<S> stand_in(const S& ji, const S& jv, const S& jq, const Membrane<R>& m, R dt, Progress<S>& at) {
  const S step(dt);
  const S longest = m.q(step);
  const R rounding = 64 * epsilon(R(0));
  const bool some = value(ji) != 0;
  const S mean = some ? quotient(jv, ji) : S(R(0));
  const bool inside =
      some && value(mean) >= -rounding * value(longest) && value(mean) <= (1 + rounding) * value(longest);
  if (!inside) {
    at.i = at.i + ji * m.grow_syn(step);
    at.v = at.v + (jv - ji * longest) * m.grow_mem(step);
    const S end = step - m.time_of_q(S(R(0.5)) * longest);
    return {end, end, S(R(0)), S(R(0))};
  }
  const S square = quotient(jq, ji);
  const S variance = square - mean * mean;
  S spread(R(0));
  if (value(variance) > rounding * std::fabs(value(square))) {
    spread = sqrt_(variance);
    const S room = value(mean) < value(longest) - value(mean) ? mean : longest - mean;
    if (value(room) < value(spread)) spread = room;
  }
  const S h1 = m.time_of_q(mean + spread), h2 = m.time_of_q(mean - spread);
  const S half = S(R(0.5)) * ji;
  return {step - h1, step - h2, half * m.grow_syn(h1), half * m.grow_syn(h2)};
}

// The crossing within (t, high] of the flow from (v, i) at t: Newton's steps inside a shrinking bracket.
template <class R>
RANVIER_HD R newton(R t, R v, R i, R high, const Membrane<R>& m) {
  R low = 0, v_x, i_x;
  high -= t;
  // Newton's steps square the error: behind one of this size there is none left that a number could hold
  const R small = std::sqrt(epsilon(R(0))) * high;
  m.flow(v, i, high, v_x, i_x);
  R x = min_(max_(high * (m.v_th - v) / (v_x > v ? v_x - v : R(1)), R(0)), high);
  RANVIER_ROLLED
  for (int k = 0; k < kIterations; ++k) {
    m.flow(v, i, x, v_x, i_x);
    if (v_x >= m.v_th)
      high = x;
    else
      low = x;
    const R slope = m.slope(v_x, i_x);
    const R step = x - quotient(v_x - m.v_th, slope > 0 ? slope : R(1));
    const R before = x;
    x = slope > 0 && step >= low && step <= high ? step : R(0.5) * (low + high);
    if (x == step && std::fabs(x - before) <= small) break;
  }
  return t + x;
}

// The root x of `level` with the derivative of the implicit function, level's divided by `rate` (Eq. 13).
template <class R>
RANVIER_HD R implicit(R x, R, R) {
  return x;
}
template <class R, int K>
RANVIER_HD Dual<R, K> implicit(R x, const Dual<R, K>& level, R rate) {
  return Dual<R, K>::chain(x, level, -1 / rate);
}

// The first crossing after `at` (Eq. 9 to 14); on true `g` is its time and `at` the state just after the reset.
template <class S, class R>
RANVIER_HD bool next_spike(Progress<S>& at, const Kicks<S>& kicks, const S& i_end, const Membrane<R>& m, R dt, S& g) {
  // three pieces: up to the first kick, up to the second, up to the end; a kick that is over has length 0
  S t = at.s, v = at.v, i = at.i;
  R high = 0;
  bool fired = false;
  int piece = 0;
  RANVIER_ROLLED
  for (;; ++piece) {
    S end = piece == 2 ? S(dt) : t;
    if (piece == 0 && at.first) end = kicks.x1;
    if (piece == 1 && at.second) end = kicks.x2;
    S v_next = at.v_end, i_next = i_end;
    if (piece < 2) m.flow(v, i, end - t, v_next, i_next);
    const bool over = value(v) >= m.v_th;
    R h, height = value(v_next);
    h = max_(value(end) - value(t), R(0));
    if (height < m.v_th) m.top(value(v), value(i), h, value(v_next), value(i_next), h, height);
    fired = over || (height >= m.v_th && value(end) > value(t));
    if (fired) {
      high = value(t) + h;
      break;
    }
    if (piece == 2) return false;
    t = end, v = v_next, i = i_next;
    if (piece == 0 && at.first) i = i + kicks.w1;
    if (piece == 1 && at.second) i = i + kicks.w2;
  }
  if (piece == 0 && value(at.v) >= m.v_th) {
    g = at.s;
    at.v = at.v - m.template threshold<S>();
  } else {
    const R root = newton(value(t), value(v), value(i), high, m);
    // behind the last kick the state is that of the end of the step moved back
    const bool last = piece == 2;
    const S t0 = last ? S(dt) : t, v0 = last ? at.v_end : v, i0 = last ? i_end : i;
    S v_g, i_g;
    m.flow(v0, i0, S(root) - t0, v_g, i_g);
    const R rate = max_(m.slope(value(v_g), value(i_g)), R(kSlopeFloor));
    g = implicit(root, v_g - m.template threshold<S>(), rate);
    m.flow(v0, i0, g - t0, v_g, i_g);
    at.v = S(R(0));
    at.i = i_g;
    at.first = at.first && piece < 1;
    at.second = at.second && piece < 2;
  }
  at.s = g;
  at.v_end = at.v_end - m.template threshold<S>() * m.grow_mem(g - S(dt));
  return true;
}

// All spikes of a step that starts from (v, i) and ends at (v_end, i_end) without resets: their number and times `g`;
// `v_end` then with resets; `still` if there are more than kSpikesPerStep.
template <class S, class R>
RANVIER_HD int spikes_between(const S& v, const S& i, const S& ji, const S& jv, const S& jq, const S& i_end,
                              const Membrane<R>& m, R dt, bool single, S* g, S& v_end, bool& still) {
  Progress<S> at{S(R(0)), v, i, v_end, true, true};
  const Kicks<S> kicks = stand_in(ji, jv, jq, m, dt, at);
  int n = 0;
  still = false;
  const int most = single ? 1 : kSpikesPerStep;
  RANVIER_ROLLED
  while (n < most && next_spike(at, kicks, i_end, m, dt, g[n])) {
    ++n;
    if (!(value(at.v_end) >= m.v_th)) break;
    still = n == kSpikesPerStep;
  }
  v_end = at.v_end;
  return n;
}

// The same from the state at the start and the bucket alone.
template <class S, class R>
RANVIER_HD int spikes_of_step(const S& v, const S& i, const S& ji, const S& jv, const S& jq, const Membrane<R>& m, R dt,
                              bool single, S* g, S& v_end, bool& still) {
  S i_end;
  m.flow(v, i, S(dt), v_end, i_end);
  v_end = v_end + jv;
  i_end = i_end + ji;
  return spikes_between(v, i, ji, jv, jq, i_end, m, dt, single, g, v_end, still);
}

// Derivatives of the times of the first `n` spikes of a step that starts from state[5] = v, i, JI, JV, JQ: row k of
// `out` (n, K) holds those of spike k for state, and with K = 8 for tau_mem, tau_syn, v_th.
template <int K, class R>
RANVIER_HD void spike_jacobian(const R* state, const Membrane<R>& m, R dt, bool single, int n, R* out) {
  using D = Dual<R, K>;
  D x[5], g[kSpikesPerStep], v_end;
  for (int q = 0; q < 5; ++q) x[q] = D::variable(state[q], q);
  bool still;
  spikes_of_step(x[0], x[1], x[2], x[3], x[4], m, dt, single, g, v_end, still);
  for (int k = 0; k < n; ++k)
    for (int q = 0; q < K; ++q) out[k * K + q] = g[k].d[q];
}

// A cheap bound on `may_fire`, from the ends (v_free, i_free) of the flow without the step's arrivals and (v_back,
// i_back) of the flow back from its end: false where that is false for sure. A flow that rises at one end of the step
// and falls at the other stays below its start plus its first slope times dt.
template <class R>
RANVIER_HD bool worth_a_look(R v, R i, R v_end, R i_end, R v_free, R i_free, R v_back, R i_back, R rate_mem, R dt,
                             R v_th) {
  const R rise = i - v * rate_mem, rise_back = i_back - v_back * rate_mem;
  const R bend = rise > 0 && i_free - v_free * rate_mem < 0 ? v + rise * dt : v_free;
  const R bend_back = rise_back > 0 ? v_back + rise_back * dt : v_back;
  const bool falls = i_end - v_end * rate_mem < 0;
  return v_end >= v_th || v >= v_th || bend >= v_th || (falls && bend_back >= v_th);
}

// Whether the step needs a look (Eq. 12); as ranvier.crossing.may_fire.
template <class R>
RANVIER_HD bool may_fire(R v, R i, R v_end, R i_end, const Membrane<R>& m, R dt) {
  if (v_end >= m.v_th || v >= m.v_th) return true;
  R h, height, v_free, i_free;
  if (m.slope(v, i) > 0) {
    m.flow(v, i, dt, v_free, i_free);
    m.top(v, i, dt, v_free, i_free, h, height);
    if (height >= m.v_th) return true;
  }
  if (!(m.slope(v_end, i_end) < 0)) return false;
  R v_back, i_back;
  m.flow(v_end, i_end, -dt, v_back, i_back);
  if (v_back >= m.v_th) return true;
  m.top(v_back, i_back, dt, v_end, i_end, h, height);
  return height >= m.v_th;
}

}  // namespace RANVIER_TARGET
}  // namespace ranvier
