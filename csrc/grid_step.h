// One neuron through one step of the grid scheme and back: Eq. 17 to 22 of docs/equations.md and the walk behind them,
// the same numbers as ranvier/grid.py. Plain arithmetic and selects, no branch: on the CPU these functions stand in
// loops over neighbouring neurons, which compilers vectorise; on the GPU a thread holds a neuron.
#pragma once
#include "arrival.h"
#include "grid_call.h"

// The CPU compiles this once for each instruction set, and no two of them may share a function.
#ifndef RANVIER_NS
#define RANVIER_NS device
#endif

namespace ranvier {
namespace RANVIER_NS {

// Slope [1/ms] of the voltage at a spike below which its time has no usable derivative.
constexpr double kGridSlopeFloor = 1e-3;

// A neuron and what follows from its parameters and dt. LIF leaves the last six alone.
template <class R>
struct Cell {
  R dt, alpha, beta, v_th, r_mem, r_syn;  // decays of a step; 1/tau_mem, 1/tau_syn
  R a, b, r_w, delta_t, r_delta, z0;      // r_w, r_delta: 1/tau_w, 1/delta_t
};

template <bool kAdex, class R>
RANVIER_HD Cell<R> make_cell(const R* parameters, int64_t n, int64_t k, R dt) {
  const auto of = [&](GridParameter p) { return parameters[p * n + k]; };
  Cell<R> c{};
  c.dt = dt, c.v_th = of(kGridVTh);
  c.alpha = std::exp(-dt / of(kGridTauSyn)), c.beta = std::exp(-dt / of(kGridTauMem));
  c.r_mem = 1 / of(kGridTauMem), c.r_syn = 1 / of(kGridTauSyn);
  if (kAdex) {
    c.a = of(kGridA), c.b = of(kGridB), c.z0 = of(kGridZ0);
    c.r_w = 1 / of(kGridTauW), c.delta_t = of(kGridDeltaT), c.r_delta = 1 / c.delta_t;
  }
  return c;
}

// A delay in steps, rounded to nearest, and kept inside of [0, most] whatever it is: it becomes an address.
template <class R>
RANVIER_HD int32_t delay_steps(R d, R dt, int32_t most) {
  const R steps = std::rint(d / dt);
  return steps > R(0) ? (steps < static_cast<R>(most) ? static_cast<int32_t>(steps) : most) : 0;
}

// v' [1/ms] (Eq. 18; AdEx: Eq. 22).
template <bool kAdex, class R>
RANVIER_HD R slope(const Cell<R>& c, R v, R i, R z) {
  const R rate = i - v * c.r_mem;
  return kAdex ? rate - z + c.delta_t * exp_far((v - R(0.5)) * c.r_delta) : rate;
}

// The slopes before and behind a spike: v'_minus, kept off 0, and v'_plus.
template <bool kAdex, class R>
RANVIER_HD void slopes_of_spike(const Cell<R>& c, R v, R i, R z, R kick, R& before, R& behind) {
  const R floor = R(kGridSlopeFloor);
  before = slope<kAdex>(c, v, i, z);
  before = before < 0 ? (before > -floor ? -floor : before) : (before < floor ? floor : before);
  behind = slope<kAdex>(c, R(0), i + kick, kAdex ? z + c.b : R(0));
}

// The end of the step of a neuron that does not fire in it (Eq. 17, 21); `kick` is the weight that arrives.
template <bool kAdex, class R>
RANVIER_HD void advance(const Cell<R>& c, R v, R i, R z, R kick, R& v_next, R& i_next, R& z_next) {
  if (kAdex) {
    // above threshold only if the single spike is over: the exponential is held
    const R held = v < c.v_th ? v : c.v_th;
    v_next = v + c.dt * (slope<true>(c, held, i, z) - (v - held) * c.r_mem);
    z_next = z + c.dt * (c.a * v - z * c.r_w);
  } else {
    v_next = c.beta * v + c.dt * i;
  }
  i_next = c.alpha * i + kick;
}

// dL/d(weight that arrives in the step) is li; this is dL/d(time of arrival) per weight 1 (Eq. 20).
template <class R>
RANVIER_HD R slope_of_arrival(const Cell<R>& c, R li, R lv, bool fired) {
  return li * c.r_syn - (fired ? R(0) : lv);
}

// Eq. 16: d count/dv of a step; `weight` is dt / unit.
template <class R>
RANVIER_HD R surrogate(R v, R v_th, R weight) {
  const R over = v - v_th, y = 1 + (over < 0 ? -over : over);
  return weight / (y * y);
}

// Adjoints of the state at the start of a step from those at its end, for a neuron that does not fire in it.
template <bool kAdex, class R>
RANVIER_HD void retreat(const Cell<R>& c, R v, R& lv, R& li, R& lz) {
  const R flow = c.dt * lv;
  li = c.alpha * li + flow;
  if (kAdex) {
    const bool below = v < c.v_th;
    const R held = below ? v : c.v_th;
    const R grow = below ? exp_far((held - R(0.5)) * c.r_delta) : R(0);
    lv = lv + flow * (grow - c.r_mem) + c.dt * c.a * lz;
    lz = lz - c.dt * c.r_w * lz - flow;
  } else {
    lv = c.beta * lv;
  }
}

// dL/dv[t] of a neuron that fires: G is the adjoint of the spike's time (its arrivals and the loss). The terms are
// those of dv[t+1] = -v'_plus dt_s and dz[t+1] = (b/tau_w + a theta) dt_s with dt_s = -dv/v'_minus (Eq. 19, 21).
template <bool kAdex, class R>
RANVIER_HD R spike_term(const Cell<R>& c, R lv, R lz, R g, R before, R behind) {
  const R jump = kAdex ? (c.b * c.r_w + c.a * c.v_th) * lz : R(0);
  return (behind * lv - jump - g) / before;
}

// The same as `retreat`, for a neuron that fires.
template <bool kAdex, class R>
RANVIER_HD void retreat_fired(const Cell<R>& c, R term, R& lv, R& li, R& lz) {
  lv = term;
  li = c.alpha * li;
  if (kAdex) {
    lv += c.dt * c.a * lz;
    lz = lz - c.dt * c.r_w * lz;
  }
}

// Adds what a step holds of the derivatives for the parameters, g[k] in the order of GridParameter, except of z0.
// (v, i, z) is the state at its start, (lv, li, lz) the adjoint of that at its end; `term` is the spike term of a
// neuron that fires; `count` is the cotangent of its spike count times the surrogate.
template <bool kAdex, class R>
RANVIER_HD void add_parameters(const Cell<R>& c, R v, R i, R z, R lv, R li, R lz, bool fired, R term, R count, R* g) {
  const R flow = fired ? R(0) : c.dt * lv;
  g[kGridTauSyn] += c.dt * c.alpha * c.r_syn * c.r_syn * i * li;
  g[kGridVTh] -= count + (fired ? term : R(0));
  if (kAdex) {
    const bool below = v < c.v_th;
    const R held = below ? v : c.v_th, x = (held - R(0.5)) * c.r_delta;
    const R grow = flow * exp_far(x);
    g[kGridTauMem] += flow * c.r_mem * c.r_mem * v;
    g[kGridVTh] += below ? R(0) : grow;
    g[kGridA] += c.dt * lz * v;
    g[kGridB] += fired ? lz : R(0);
    g[kGridTauW] += c.dt * c.r_w * c.r_w * z * lz;
    g[kGridDeltaT] += grow * (1 - x);
  } else {
    g[kGridTauMem] += flow * c.beta * c.r_mem * c.r_mem * v;
  }
}

}  // namespace RANVIER_NS
}  // namespace ranvier
