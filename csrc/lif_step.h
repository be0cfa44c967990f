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
// and two exponentials) stands side by side, before any decision. What is rare shares one branch. The derivative of the
// root is that of the implicit function, in closed form.
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

// The functions of a search. On the GPU one lane waits for them one after another, so they are the machine's own, to
// rounding and without care for denormals; on the CPU they call nothing, so that neighbours overlap.
RANVIER_HD float inverse(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
RANVIER_HD double inverse(double x) { return 1 / x; }
RANVIER_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return a * inverse(b);
#else
  return a / b;
#endif
}
RANVIER_HD double quotient(double a, double b) { return a / b; }
RANVIER_HD float root_(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::sqrt(x);
#endif
}
RANVIER_HD double root_(double x) { return std::sqrt(x); }

// phi(x) = (exp(x) - 1) / x for |x| < kNearest, to rounding: phi_near with a shorter chain of dependent operations.
RANVIER_HD float phi_quick(float x) {
  const float x2 = x * x, a = 1 + 0.5f * x, b = 1.f / 6 + 1.f / 24 * x;
  const float c = 1.f / 120 + 1.f / 720 * x, d = 1.f / 5040 + 1.f / 40320 * x;
  return (a + b * x2) + (c + d * x2) * (x2 * x2);
}
RANVIER_HD double phi_quick(double x) { return phi_near(x); }
// log(1 + y) / y for y = exp(x) - 1 with |x| < kNearest, to rounding: 2 artanh(s) / y with s = y / (2 + y), s^2 < 0.08.
RANVIER_HD float log1p_near(float y) {
  const float half = inverse(2 + y), s = y * half, z = s * s;
  const float a = 2 + 2.f / 3 * z, b = 2.f / 5 + 2.f / 7 * z, c = 2.f / 9 + 2.f / 11 * z;
  return half * (a + (b + c * (z * z)) * (z * z));
}
RANVIER_HD double log1p_near(double y) {
  const double half = inverse(2 + y), s = y * half, z = s * s;
  double p = 2. / 27;
  p = p * z + 2. / 25;
  p = p * z + 2. / 23;
  p = p * z + 2. / 21;
  p = p * z + 2. / 19;
  p = p * z + 2. / 17;
  p = p * z + 2. / 15;
  p = p * z + 2. / 13;
  p = p * z + 2. / 11;
  p = p * z + 2. / 9;
  p = p * z + 2. / 7;
  p = p * z + 2. / 5;
  p = p * z + 2. / 3;
  p = p * z + 2.;
  return half * p;
}

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
// exp(x) for the moderate x of a step. Here and below kNear says that |x| < kNearest, as it is for all times of a step
// that is short beside the time constants.
template <bool kNear = false>
RANVIER_HD float exp_(float x) {
#if defined(__CUDA_ARCH__)
  return exp2_(x * 1.44269504f);
#else
  return kNear ? 1 + x * phi_quick(x) : exp_far(x);
#endif
}
template <bool kNear = false>
RANVIER_HD double exp_(double x) {
  return kNear ? 1 + x * phi_quick(x) : exp_far(x);
}
// phi(x) to rounding.
template <bool kNear = false, class R>
RANVIER_HD R phi(R x) {
  if (kNear || std::fabs(x) < R(kNearest)) return phi_quick(x);
  return quotient(exp_(x) - 1, x);
}
// phi'(x), as synapse.py has it.
template <class R>
RANVIER_HD R slope_of_phi(R x) {
  if (std::fabs(x) < R(kNearest)) return phi_slope_near(x);
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

  // Whether a step is short beside the time constants.
  RANVIER_HD bool near(R dt) const {
    return max_(max_(rate_mem, rate_syn), std::fabs(c)) * dt < R(kNearest) * (1 - 64 * epsilon(R(0)));
  }
  // exp(-h / tau_syn), exp(-h / tau_mem) and q(h) (Eq. 2).
  template <bool kNear = false>
  RANVIER_HD void decays(R h, R& syn, R& mem, R& y) const {
    syn = exp_<kNear>(-h * rate_syn);
    y = q<kNear>(h);
    mem = kNear || std::fabs(c * h) < R(kNearest) ? syn * (1 + c * y) : exp_(-h * rate_mem);
  }
  // d q(h) / d c
  RANVIER_HD R q_slope(R h) const { return h * h * slope_of_phi(c * h); }

  // (v, i) a time h later (Eq. 4).
  template <bool kNear = false>
  RANVIER_HD void flow(R v, R i, R h, R& v_out, R& i_out) const {
    R syn, mem, y;
    decays<kNear>(h, syn, mem, y);
    i_out = i * syn;
    v_out = v * mem + i_out * y;
  }
  RANVIER_HD R slope(R v, R i) const { return i - v * rate_mem; }
  template <bool kNear = false>
  RANVIER_HD R q(R h) const {
    return h * phi<kNear>(c * h);
  }
  // The h with q(h) = y.
  template <bool kNear = false>
  RANVIER_HD R time_of_q(R y) const {
    const R x = c * y;
    if (kNear || (x > R(-0.4) && x < R(0.65))) return y * log1p_near(x);
    return quotient(std::log(1 + x), c);
  }
  // exp(h / tau_mem)
  RANVIER_HD R grow_mem(R h) const { return exp_(h * rate_mem); }

  // Height of the peak (Eq. 11) of a flow from (v, i), whose voltage rises by `rise` > 0.
  template <bool kNear = false>
  RANVIER_HD R peak(R v, R i, R rise) const {
    return tau_mem * i * exp_<kNear>(-time_of_peak<kNear>(v, i, rise) * rate_syn);
  }
  // How long a flow with current i and slope `rise` > 0 of its voltage v rises (Eq. 11); all three of one scale.
  template <bool kNear = false>
  RANVIER_HD R time_of_peak(R v, R i, R rise) const {
    const R y = quotient(tau_mem * rise, i + c * v);
    return c * y > -1 ? max_(time_of_q<kNear>(y), R(0)) : R(0);
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
  const R spread = root_(k.apart ? variance : R(0)), room = max_(min_(k.mean, longest - k.mean), R(0));
  k.limited = room < spread;
  k.spread = min_(spread, room);
  k.y1 = k.inside ? min_(k.mean + k.spread, longest) : R(0.5) * longest;
  k.y2 = k.inside ? max_(k.mean - k.spread, R(0)) : R(0.5) * longest;
  k.half = k.inside ? R(0.5) * ji : R(0);
  return k;
}

// The crossing of a flow within `length`: the first x with below + a p(x) = theta (exp(x / tau_mem) - 1), p(x) =
// q(x) exp(-c x); `below` < 0 and `above` >= 0 are what is reached at both ends. Newton's steps inside a shrinking
// bracket, from the root of the parabola through both ends with the slope at the first. Returns x, and in `theta` what
// it has grown to, theta exp(x / tau_mem).
template <bool kNear, class R>
RANVIER_HD R newton(R below, R above, R a, R length, const Membrane<R>& m, R& theta) {
  const R rise = (a - theta * m.rate_mem) * length, sum = rise + 2 * below;
  const R guess = quotient(-2 * below, rise + root_(sum * sum - 4 * below * above));
  R x = min_(max_(R(0), guess), R(1)) * length, low = 0, high = length, before, grown;
  // Newton's steps square the error: behind one of this size there is none left that a number could hold
  const R small = R(sizeof(R) == 4 ? 3.5e-4 : 1.5e-8) * length;
  RANVIER_ROLLED
  for (int k = 0; k < kIterations; ++k) {
    const R u = x * m.rate_mem, p = a * x * phi<kNear>(-m.c * x);
    grown = theta * u * phi<kNear>(u);
    const R level = below + (p - grown), slope = a - m.c * p - (theta + grown) * m.rate_mem;
    low = level >= 0 ? low : x;
    high = level >= 0 ? x : high;
    before = x;
    const R step = x - quotient(level, slope);
    const bool inside = slope > 0 && step >= low && step <= high;
    x = inside ? step : R(0.5) * (low + high);
    if (inside && std::fabs(x - before) <= small) break;
  }
  const R u = (x - before) * m.rate_mem;
  theta = (theta + grown) * (1 + u * (1 + R(0.5) * u));
  return x;
}

// A moment of a step: the time h to its end, q(h), left and b as above, and b - theta left.
template <class R>
struct Mark {
  R h, y, left, b, level;
  RANVIER_HD void set(R b_here, R v_th) { b = b_here, level = b - v_th * left; }
  // The current in the scale of b, and v' left with it.
  RANVIER_HD R scaled(R a, const Membrane<R>& m) const { return a * (1 + m.c * y); }
  RANVIER_HD R rise(R scaled, const Membrane<R>& m) const { return scaled - b * m.rate_mem; }
};

// spikes_between for steps that are short beside the time constants, or any.
template <bool kNear, class R>
RANVIER_HD int search_step(R v, R i, R ji, R jv, R jq, R i_end, const Membrane<R>& m, R dt, bool single, R* g, R& v_end,
                           bool& still) {
  const int most = single ? 1 : kSpikesPerStep;
  const R v_th = m.v_th;
  R alpha, beta, longest;
  m.template decays<kNear>(dt, alpha, beta, longest);
  const Kicks<R> kicks = stand_in(ji, jv, jq, longest);
  Mark<R> kick1{m.template time_of_q<kNear>(kicks.y1), kicks.y1, 0, 0, 0};
  Mark<R> kick2{m.template time_of_q<kNear>(kicks.y2), kicks.y2, 0, 0, 0};
  kick1.left = exp_<kNear>(-kick1.h * m.rate_mem), kick2.left = exp_<kNear>(-kick2.h * m.rate_mem);
  const R a0 = kicks.inside ? i * alpha : i_end, a1 = a0 + kicks.half;
  if (!kicks.inside) v += quotient(jv - ji * longest, beta);
  Mark<R> start{dt, longest, beta, v * beta, (v - v_th) * beta};
  bool over = v >= v_th, more = true;
  int n = 0;
  // three pieces: up to the first kick, up to the second, up to the end; one that is over has length 0
  RANVIER_ROLLED
  while (more) {
    kick1.set(start.b + a0 * (start.y - kick1.y), v_th);
    kick2.set(kick1.b + a1 * (kick1.y - kick2.y), v_th);
    const Mark<R> end{0, 0, 1, v_end, v_end - v_th};
    // whether a piece is above threshold at its end, and whether its highest voltage lies before that
    bool first = kick1.level >= 0, second = kick2.level >= 0, third = end.level >= 0;
    const R a_first = start.scaled(a0, m), a_second = kick1.scaled(a1, m), a_third = kick2.scaled(i_end, m);
    const bool first_peak = start.rise(a_first, m) > 0 && kick1.rise(kick1.scaled(a0, m), m) < 0;
    const bool second_peak = kick1.rise(a_second, m) > 0 && kick2.rise(kick2.scaled(a1, m), m) < 0;
    const bool third_peak = kick2.rise(a_third, m) > 0 && end.rise(i_end, m) < 0;
    R above = first ? kick1.level : second ? kick2.level : end.level, top = dt;
    const bool peaks = !first && (first_peak || (!second && (second_peak || (!third && third_peak))));
    if (over || peaks || !(first || second || third)) {
      if (over) {  // above threshold at the very start
        g[n] = 0;
        v -= v_th, v_end -= v_th * beta;
        start.b = v * beta, start.level = (v - v_th) * beta;
        over = v >= v_th, more = ++n < most && v_end >= v_th;
        continue;
      }
      bool reached = false;
      RANVIER_ROLLED
      for (int k = 0; k < 3 && !reached; ++k) {
        if (k == 0 ? first : k == 1 ? second : third) break;
        if (!(k == 0 ? first_peak : k == 1 ? second_peak : third_peak)) continue;
        const Mark<R> from = k == 0 ? start : k == 1 ? kick1 : kick2;
        const R a = k == 0 ? a_first : k == 1 ? a_second : a_third, rise = from.rise(a, m);
        const R h = m.template time_of_peak<kNear>(from.b, a, rise);
        const R level = from.b + m.tau_syn * rise - v_th * from.left * exp_<kNear>(h * m.rate_mem);
        if (level >= 0) reached = true, above = level, top = h, first = k == 0, second = k == 1;
      }
      if (!reached && !(first || second || third)) break;
    }
    const R length = first ? start.h - kick1.h : second ? kick1.h - kick2.h : kick2.h;
    const R below = first ? start.level : second ? kick1.level : kick2.level;
    const R a = first ? a_first : second ? a_second : a_third, h = first ? start.h : second ? kick1.h : kick2.h;
    R taken = v_th * (first ? start.left : second ? kick1.left : kick2.left);
    const R x = newton<kNear>(below, above, a, max_(min_(length, top), R(0)), m, taken);
    g[n] = dt - h + x;
    v_end -= taken;
    more = ++n < most && v_end >= v_th;
    if (more) {  // on from 0 at the spike
      start.h = h - x, start.y = m.template q<kNear>(start.h), start.left = exp_<kNear>(-start.h * m.rate_mem);
      start.set(0, v_th);
      if (!first) kick1 = start;
      if (!first && !second) kick2 = start;
    }
  }
  still = n == kSpikesPerStep && v_end >= v_th;
  return n;
}

// All spikes of a step that starts from (v, i) and ends at (v_end, i_end) without resets (Eq. 9 to 14): their number
// and times `g`; `v_end` then with resets; `still` if there are more than kSpikesPerStep.
template <class R>
RANVIER_HD int spikes_between(R v, R i, R ji, R jv, R jq, R i_end, const Membrane<R>& m, R dt, bool single, R* g,
                              R& v_end, bool& still) {
  if (m.near(dt)) return search_step<true>(v, i, ji, jv, jq, i_end, m, dt, single, g, v_end, still);
  return search_step<false>(v, i, ji, jv, jq, i_end, m, dt, single, g, v_end, still);
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

// may_fire for a neuron that is below threshold at both ends of the step.
template <bool kNear, class R>
RANVIER_HD bool look_closer(R v, R i, R v_end, R i_end, const Membrane<R>& m, R dt) {
  R v_there, i_there;
  const R rise = m.slope(v, i);
  if (rise > 0) {
    m.template flow<kNear>(v, i, dt, v_there, i_there);
    if (v_there >= m.v_th) return true;
    if (m.slope(v_there, i_there) < 0 && m.template peak<kNear>(v, i, rise) >= m.v_th) return true;
  }
  if (!(m.slope(v_end, i_end) < 0)) return false;
  m.template flow<kNear>(v_end, i_end, -dt, v_there, i_there);
  if (v_there >= m.v_th) return true;
  const R rise_back = m.slope(v_there, i_there);
  return rise_back > 0 && m.template peak<kNear>(v_there, i_there, rise_back) >= m.v_th;
}

// Whether the step needs a look (Eq. 12); as ranvier.crossing.may_fire.
template <class R>
RANVIER_HD bool may_fire(R v, R i, R v_end, R i_end, const Membrane<R>& m, R dt) {
  if (v_end >= m.v_th || v >= m.v_th) return true;
  return m.near(dt) ? look_closer<true>(v, i, v_end, i_end, m, dt) : look_closer<false>(v, i, v_end, i_end, m, dt);
}

}  // namespace RANVIER_TARGET
}  // namespace ranvier
