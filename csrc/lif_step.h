// One LIF neuron through one step of the continuous scheme: the same algorithm as ranvier/crossing.py.
//
// A state is looked at from the end of the step: with h the time to that end and y = q(h), the free flow of voltage v
// and current i has
//
//     left(h) = exp(-h / tau_mem)        b = v left(h)        a = i exp(-h / tau_syn)
//     v' left(h) = a (1 + c y) - b / tau_mem
//
// so a stays what it is, b grows by a (y_before - y_after), and kick n of Eq. 7 adds JI/2 to a, whatever its time. So
// the levels b - theta left(h) at both kicks follow from their q alone, and what takes long to compute (two logarithms
// and two exponentials) stands side by side, before any decision. The root is sought from the value and the slope at
// both ends of its piece; its derivative is that of the implicit function, in closed form.
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

// A quotient that only steers a search or corrects a small error.
RANVIER_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
RANVIER_HD double quotient(double a, double b) { return a / b; }
// The square root of a positive number.
RANVIER_HD float root_(float x) {
#if defined(__CUDA_ARCH__)
  return x * rsqrtf(x);
#else
  return std::sqrt(x);
#endif
}
RANVIER_HD double root_(double x) { return std::sqrt(x); }
// exp(x) for the moderate x of a step.
RANVIER_HD float exp_(float x) {
#if defined(__CUDA_ARCH__)
  return __expf(x);
#else
  return exp_far(x);  // no call: it overlaps with its neighbours
#endif
}
RANVIER_HD double exp_(double x) { return exp_far(x); }
// 2^x for the moderate x of a step.
RANVIER_HD float exp2_(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}
RANVIER_HD double exp2_(double x) { return std::exp2(x); }

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
  if (std::fabs(x) < R(kNearest)) return phi_slope_near(x);
  return ((x - 1) * std::exp(x) + 1) / (x * x);
}
// log(1 + x) / x for -0.4 < x < 0.65 to rounding: 2 artanh(s) / x with s = x / (2 + x), s^2 < 1/16.
RANVIER_HD float log1p_near(float x) {
  const float half = quotient(1.f, 2 + x), s = x * half, z = s * s;
  float p = 1.f / 11;
  p = p * z + 1.f / 9;
  p = p * z + 1.f / 7;
  p = p * z + 1.f / 5;
  p = p * z + 1.f / 3;
  p = p * z + 1.f;
  return 2 * half * p;
}
RANVIER_HD double log1p_near(double x) {
  const double half = 1 / (2 + x), s = x * half, z = s * s;
  double p = 1. / 25;
  p = p * z + 1. / 23;
  p = p * z + 1. / 21;
  p = p * z + 1. / 19;
  p = p * z + 1. / 17;
  p = p * z + 1. / 15;
  p = p * z + 1. / 13;
  p = p * z + 1. / 11;
  p = p * z + 1. / 9;
  p = p * z + 1. / 7;
  p = p * z + 1. / 5;
  p = p * z + 1. / 3;
  p = p * z + 1.;
  return 2 * half * p;
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
    mem = std::fabs(x) < R(kNearest) ? syn * (1 + c * y) : exp_(-h * rate_mem);
  }
  // d q(h) / d c
  RANVIER_HD R q_slope(R h) const { return h * h * slope_of_phi(c * h); }

  // (v, i) a time h later (Eq. 4).
  RANVIER_HD void flow(R v, R i, R h, R& v_out, R& i_out) const {
    R syn, mem, y;
    decays(h, syn, mem, y);
    i_out = i * syn;
    v_out = v * mem + i_out * y;
  }
  RANVIER_HD R slope(R v, R i) const { return i - v * rate_mem; }
  RANVIER_HD R q(R h) const { return h * phi(c * h); }
  // The h with q(h) = y.
  RANVIER_HD R time_of_q(R y) const {
    const R x = c * y;
    if (x > R(-0.4) && x < R(0.65)) return y * log1p_near(x);
    return quotient(std::log1p(x), c);
  }
  // exp(h / tau_mem)
  RANVIER_HD R grow_mem(R h) const { return exp_(h * rate_mem); }

  // Height of the peak (Eq. 11) of a flow from (v, i), whose voltage rises by `rise` > 0.
  RANVIER_HD R peak(R v, R i, R rise) const { return tau_mem * i * exp_(-time_of_peak(v, i, rise) * rate_syn); }
  // How long a flow with current i and slope `rise` > 0 of its voltage v rises (Eq. 11); all three of one scale.
  RANVIER_HD R time_of_peak(R v, R i, R rise) const {
    const R y = quotient(tau_mem * rise, i + c * v);
    return c * y > -1 ? max_(time_of_q(y), R(0)) : R(0);
  }
};

// What stands for the arrivals of a step (Eq. 7): two kicks of the current, which add `half` each to a; or all of it at
// the start of the step (Eq. 8).
template <class R>
struct Kicks {
  R y1, y2, half;  // q(h) of both
  bool inside;     // false: at the start
  // what y1 and y2 come from, for derivatives
  R mean, square, spread;
  bool apart, limited;
};

template <class R>
RANVIER_HD Kicks<R> stand_in(R ji, R jv, R jq, R longest) {
  const R rounding = 64 * epsilon(R(0));
  Kicks<R> k;
  k.mean = quotient(jv, ji), k.square = quotient(jq, ji);
  k.inside = ji != 0 && k.mean >= -rounding * longest && k.mean <= (1 + rounding) * longest;
  const R variance = k.square - k.mean * k.mean;
  k.apart = variance > rounding * std::fabs(k.square);
  const R spread = root_(k.apart ? variance : R(1)), room = min_(k.mean, longest - k.mean);
  k.limited = k.apart && room < spread;
  k.spread = k.limited ? room : k.apart ? spread : R(0);
  k.y1 = k.inside ? k.mean + k.spread : R(0.5) * longest;
  k.y2 = k.inside ? k.mean - k.spread : R(0.5) * longest;
  k.half = k.inside ? R(0.5) * ji : R(0);
  return k;
}

// The first x in [0, length] with b + a p(x) = theta exp(x / tau_mem), p(x) = q(x) exp(-c x): the crossing of a flow
// from (b, a), negative at 0 (by `below`) and not at `length` (by `above`). Newton's steps inside a shrinking bracket,
// from the root of the parabola through both ends with the slope at the first.
template <class R>
RANVIER_HD R newton(R b, R a, R theta, R below, R above, R length, const Membrane<R>& m) {
  const R rise = (a - theta * m.rate_mem) * length;
  const R inner = (rise + 2 * below) * (rise + 2 * below) - 4 * below * above,
          guess = quotient(-2 * below, rise + root_(inner));
  R x = guess >= 0 && guess <= 1 ? guess * length : R(0.5) * length, low = 0, high = length;
  // Newton's steps square the error: behind one of this size there is none left that a number could hold
  const R small = R(sizeof(R) == 4 ? 3.5e-4 : 1.5e-8) * length;
  RANVIER_ROLLED
  for (int k = 0; k < kIterations; ++k) {
    const R p = x * phi(-m.c * x), grown = theta * exp_(x * m.rate_mem);
    const R level = b + a * p - grown, slope = a - m.c * a * p - grown * m.rate_mem;
    if (level >= 0)
      high = x;
    else
      low = x;
    const R step = x - quotient(level, slope > 0 ? slope : R(1)), before = x;
    const bool inside = slope > 0 && step >= low && step <= high;
    x = inside ? step : R(0.5) * (low + high);
    if (inside && std::fabs(x - before) <= small) break;
  }
  return x;
}

// All spikes of a step that starts from (v, i) and ends at (v_end, i_end) without resets (Eq. 9 to 14): their number
// and times `g`; `v_end` then with resets; `still` if there are more than kSpikesPerStep.
template <class R>
RANVIER_HD int spikes_between(R v, R i, R ji, R jv, R jq, R i_end, const Membrane<R>& m, R dt, bool single, R* g,
                              R& v_end, bool& still) {
  R alpha, beta, longest;
  m.decays(dt, alpha, beta, longest);
  const Kicks<R> kicks = stand_in(ji, jv, jq, longest);
  const R h1 = m.time_of_q(kicks.y1), h2 = m.time_of_q(kicks.y2);
  const R left1 = exp_(-h1 * m.rate_mem), left2 = exp_(-h2 * m.rate_mem);
  const R a0 = kicks.inside ? i * alpha : i_end;
  if (!kicks.inside) v = v + quotient(jv - ji * longest, beta);
  // three pieces: up to the first kick, up to the second, up to the end; here the one begins that is looked at
  int piece = 0, n = 0;
  R h = dt, y = longest, left = beta, b = v * beta;
  bool over = v >= m.v_th;
  still = false;
  const int most = single ? 1 : kSpikesPerStep;
  RANVIER_ROLLED
  for (;;) {
    const R a = piece == 0 ? a0 : piece == 1 ? a0 + kicks.half : i_end;
    const R h_end = piece == 0   ? h1
                    : piece == 1 ? h2
                                 : R(0),
            y_end = piece == 0   ? kicks.y1
                    : piece == 1 ? kicks.y2
                                 : R(0);
    const R left_end = piece == 0 ? left1 : piece == 1 ? left2 : R(1);
    const R b_end = piece == 2 ? v_end : b + a * (y - y_end);
    R above = b_end - m.v_th * left_end, length = h - h_end;
    const R here = a * (1 + m.c * y);  // in the scale of b
    if (!over && above < 0) {
      const R rise = here - b * m.rate_mem;
      if (rise > 0 && a * (1 + m.c * y_end) < b_end * m.rate_mem) {
        length = min_(m.time_of_peak(b, here, rise), length);
        above = b + m.tau_syn * rise - m.v_th * left * exp_(length * m.rate_mem);
      }
    }
    if (!over && !(above >= 0 && h > h_end)) {
      if (piece == 2) break;
      ++piece;
      over = above >= 0;
      h = h_end, y = y_end, left = left_end, b = b_end;
      continue;
    }
    if (over && piece == 0) {
      g[n] = 0;
      v -= m.v_th;
      b = v * beta;
      over = v >= m.v_th;
      v_end -= m.v_th * beta;
    } else {
      const R x = over ? R(0) : newton(b, here, m.v_th * left, b - m.v_th * left, above, length, m);
      left *= exp_(x * m.rate_mem);
      h -= x;
      g[n] = dt - h;
      v_end -= m.v_th * left;
      over = false;
      b = 0;
    }
    if (++n == most || !(v_end >= m.v_th)) break;
    y = m.q(h);
  }
  still = n == kSpikesPerStep && v_end >= m.v_th;
  return n;
}

// Derivatives of the times `g` (n,) of a step's spikes for the state[5] = v, i, JI, JV, JQ that it starts from, and
// with K = 8 for tau_mem, tau_syn, v_th: row k of `out` (n, K) holds those of spike k. Eq. 13 in the scale of the end
// of the step: dg = -(db - d(theta left)) / (v' left), at fixed time.
template <int K, class R>
RANVIER_HD void spike_jacobian(const R* state, const R* g, const Membrane<R>& m, R dt, int n, R* out) {
  const R i = state[1], ji = state[2], jv = state[3];
  R alpha, beta, longest;
  m.decays(dt, alpha, beta, longest);
  const Kicks<R> kicks = stand_in(ji, jv, state[4], longest);
  R v = kicks.inside ? state[0] : state[0] + quotient(jv - ji * longest, beta);
  R resets[K] = {};  // of what earlier spikes of the step took from b
  RANVIER_ROLLED
  for (int f = 0; f < n; ++f) {
    R* const to = out + f * K;
    const R h = dt - g[f];
    R syn, left, y;
    m.decays(h, syn, left, y);
    const bool at_once = v >= m.v_th && g[f] == 0;  // the start of the step does not move
    v = at_once ? v - m.v_th : R(0);
    // a and b behind all arrivals, before the first kick, or between both
    R a = i * alpha + ji, by_ji = -y, by_jv = 1, by_jq = 0, by_longest = 0;
    if (kicks.inside && y > kicks.y1) {
      a = i * alpha, by_ji = 0, by_jv = 0;
    } else if (kicks.inside && y > kicks.y2) {
      a = i * alpha + kicks.half, by_ji = R(-0.5) * y;
      if (!kicks.apart) {
        by_jv = R(0.5);
      } else if (!kicks.limited) {
        by_jq = quotient(R(0.25), kicks.spread);
        by_jv = R(0.5) - 2 * kicks.mean * by_jq;
        by_ji += R(0.5) * kicks.spread + (2 * kicks.mean * kicks.mean - kicks.square) * by_jq;
      } else if (kicks.spread != kicks.mean) {
        by_ji += R(0.5) * longest, by_jv = 0, by_longest = kicks.half;
      }
    }
    const R rate = a * (1 + m.c * y) - m.v_th * left * m.rate_mem;
    const R scale = at_once ? R(0) : -1 / max_(rate, R(kSlopeFloor) * left);
    to[0] = scale * (beta - resets[0]);
    to[1] = scale * (alpha * (longest - y) - resets[1]);
    to[2] = scale * (by_ji - resets[2]);
    to[3] = scale * (by_jv - resets[3]);
    to[4] = scale * (by_jq - resets[4]);
    if constexpr (K == 8) {
      const R bend = (i * alpha + by_longest) * m.q_slope(dt) - a * m.q_slope(h);  // of b by c
      const R taken = m.v_th * left * h * m.rate_mem * m.rate_mem;
      to[kTauMem] = scale * ((state[0] * beta * dt + bend) * m.rate_mem * m.rate_mem - taken - resets[kTauMem]);
      to[kTauSyn] = scale * ((i * alpha * dt * (longest - y) - bend) * m.rate_syn * m.rate_syn - resets[kTauSyn]);
      to[kThreshold] = scale * (-left - resets[kThreshold]);
      resets[kTauMem] += taken, resets[kThreshold] += left;
    }
    for (int q = 0; q < K; ++q) resets[q] += m.v_th * left * m.rate_mem * to[q];
  }
}

// The same where the times are not known.
template <int K, class R>
RANVIER_HD void spike_jacobian(const R* state, const Membrane<R>& m, R dt, bool single, int n, R* out) {
  R v_end, i_end, g[kSpikesPerStep];
  m.flow(state[0], state[1], dt, v_end, i_end);
  v_end += state[3], i_end += state[2];
  bool still;
  spikes_between(state[0], state[1], state[2], state[3], state[4], i_end, m, dt, single, g, v_end, still);
  spike_jacobian<K>(state, g, m, dt, n, out);
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
  const R rise = m.slope(v, i), fall = m.slope(v_end, i_end);
  R v_there, i_there;
  if (rise > 0) {
    m.flow(v, i, dt, v_there, i_there);
    if (v_there >= m.v_th) return true;
    if (m.slope(v_there, i_there) < 0 && m.peak(v, i, rise) >= m.v_th) return true;
  }
  if (!(fall < 0)) return false;
  m.flow(v_end, i_end, -dt, v_there, i_there);
  if (v_there >= m.v_th) return true;
  const R rise_back = m.slope(v_there, i_there);
  return rise_back > 0 && m.peak(v_there, i_there, rise_back) >= m.v_th;
}

}  // namespace RANVIER_TARGET
}  // namespace ranvier
