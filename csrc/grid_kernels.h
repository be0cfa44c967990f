// What the FFI handlers (grid_ffi.cc) and the sample kernels (grid_kernels.cc) of the CPU agree on.
#pragma once
#include <cstdint>

#include "grid_call.h"

namespace ranvier {

constexpr int kGridCellRows = 12;

// A parameter set as the kernels read it, made once a call.
template <class R>
struct GridSet {
  const R *w_in, *w_rec;                  // (M, N), (N, N)
  const int32_t *places_in, *places_rec;  // (M, N), (N, N): delay N + target
  const R* cells;                         // (12, N)
  int32_t longest;                        // delay in steps
};

// Sums of derivatives that a walk adds to; those of the delays still lack the factor w.
template <class R>
struct GridSums {
  R *dw_in, *dd_in, *dw_rec, *dd_rec, *d_neuron;  // (M, N) twice, (N, N) twice, (8, N)
};

// Rows of a window beyond those that a delay reaches: as many again, so that moving them costs a row or two a step.
inline int64_t grid_spare_rows(int32_t longest) { return longest < 63 ? 64 : int64_t(longest) + 1; }

// Numbers that a walk needs for itself.
inline int64_t grid_forward_memory(int64_t n, int32_t longest) {
  return (6 + longest + 1 + grid_spare_rows(longest)) * n;
}
inline int64_t grid_backward_memory(int64_t n, int32_t longest) {
  return (9 + 2 * (longest + 1 + grid_spare_rows(longest))) * n;
}

// Numbers that `to_positions` needs for itself: targets and two sums, in whole blocks of lanes.
inline int64_t grid_positions_memory(int64_t n, int64_t dims) { return (2 * n + 64) * dims; }

template <class R>
struct GridKernels {
  // Fills `places_*` and `cells` (not const here) of a set; returns the longest delay in steps.
  int32_t (*prepare)(const GridCall<R>&, int64_t set, int32_t* places_in, int32_t* places_rec, R* cells);
  void (*forward)(const GridCall<R>&, const GridSet<R>&, int64_t sample, int64_t n_real, R* memory, int32_t* fired);
  void (*backward)(const GridCall<R>&, const GridSet<R>&, int64_t sample, int64_t n_real, const GridSums<R>&,
                   R* memory);
  // From dL/dd of the delays of a set, of the inputs or recurrent, to its part of positions.d_in or d_rec.
  void (*to_positions)(const GridCall<R>&, int64_t set, bool recurrent, const R* dd, R* memory);
};

#define RANVIER_DECLARE(NS)                                   \
  namespace NS {                                              \
  template <class R>                                          \
  GridKernels<R> grid_kernels();                              \
  extern template GridKernels<float> grid_kernels<float>();   \
  extern template GridKernels<double> grid_kernels<double>(); \
  }
RANVIER_DECLARE(base)
RANVIER_DECLARE(v3)
RANVIER_DECLARE(v4)
#undef RANVIER_DECLARE

}  // namespace ranvier
