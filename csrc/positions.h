// Delays that are distances between positions (docs/equations.md, Eq. 24 and 25): what a call holds in place of
// matrices of delays, and the arithmetic of a synapse; CPU and GPU.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace ranvier {

// Positions of both ends of a layer's synapses, and where their derivatives go.
template <class R>
struct Positions {
  int64_t dims;      // D; 0: delays are given
  const R* in;       // (P, M + N, D) [ms] of the inputs, then of the neurons
  const R* rec;      // (P, 2 N, D) of the neurons as sources, then as targets
  const R* longest;  // (P,) a longer delay acts as this one and has no derivative [ms]
  R *d_in, *d_rec;   // outputs of backward, shaped as `in` and `rec`
};

inline namespace RANVIER_TARGET {

// The square of the shortest delay [ms^2]: keeps the derivative finite where two neurons coincide.
constexpr double kShortestSquared = 0.01;

// D_ij of Eq. 24 between two points.
template <class R>
RANVIER_HD R distance(const R* p, const R* q, int64_t dims) {
  R square = R(kShortestSquared);
  for (int64_t a = 0; a < dims; ++a) square += (p[a] - q[a]) * (p[a] - q[a]);
  return std::sqrt(square);
}

// What an adjoint of the delay is a unit of p - q (Eq. 25).
template <class R>
RANVIER_HD R pull(R dd, R distance, R longest) {
  return distance > longest ? R(0) : dd / distance;
}

// The delays of one matrix, given or by positions.
template <class R>
struct Delays {
  const R* given;  // (P, sources, N)
  const R* ends;   // (P, sources + N, D)
  const R* longest;
  int64_t sources, n, dims;

  RANVIER_HD R of(int64_t set, int64_t source, int64_t target) const {
    if (dims == 0) return given[(set * sources + source) * n + target];
    const R* const p = ends + set * (sources + n) * dims;
    return min_(distance(p + source * dims, p + (sources + target) * dims, dims), longest[set]);
  }
};

// Those of the inputs and of the recurrent synapses of a call.
template <class C>
RANVIER_HD auto delays_in(const C& c) {
  return Delays<std::remove_cv_t<std::remove_reference_t<decltype(*c.time)>>>{
      c.d_in, c.positions.in, c.positions.longest, c.n_inputs, c.n, c.positions.dims};
}
template <class C>
RANVIER_HD auto delays_rec(const C& c) {
  return Delays<std::remove_cv_t<std::remove_reference_t<decltype(*c.time)>>>{
      c.d_rec, c.positions.rec, c.positions.longest, c.n, c.n, c.positions.dims};
}

}  // namespace RANVIER_TARGET
}  // namespace ranvier
