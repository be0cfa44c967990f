// What the FFI handlers (ops_ffi.cc) and the kernels (ops_kernels.cc) of the sparse operators on the CPU agree on.
#pragma once
#include <cstdint>

#include "ops_call.h"

namespace ranvier {

// Columns that are worth a walk through a list.
constexpr int64_t kOpsColumns = 512;
// Lists that go through blocks of rows together, at most.
constexpr int64_t kOpsTile = 128;
// Lists whose slots are sorted by row together.
constexpr int64_t kOpsLists = 512;
// Bytes that may be taken of the cache nearby. Where what these lists have of g is more, columns are cut.
constexpr int64_t kOpsCache = int64_t(1) << 20;

struct Range {
  int64_t begin, end;
};

// Slots of some lists in the order of the rows they name; those that name the same row, in the order of lists and
// slots. Row i has those from start[i] to start[i + 1]. What is kept of a slot: its value, or where in its list it is.
template <class X>
struct ByRow {
  int64_t first;   // list
  int32_t* start;  // (N + 2)
  int32_t* list;   // counted from `first`
  X* kept;
};

// What lists of a call a gather does at a time, and how: with rows 0 ... B - 1 of the matrix for all of them, then with
// the next B rows and so on, so that rows that many lists name stay in the cache nearby. That is of use where lists are
// ascending, as those of spikes are; results are the same for any B.
struct Tile {
  Range lists;
  int64_t block;
  int64_t stride;  // numbers from a row of the matrix to the next
};

// Lists are counted through all groups: list q R + r.
template <class A, class M>
struct OpsMatrixKernels {
  // `place` has room for one number a list, `row` and `value` for S.
  void (*gather)(const GatherCall<A, M>&, const Tile&, Range columns, int32_t* place, int32_t* row, A* value);
  // A list after another; `row` and `slot` have room for S.
  void (*dots)(const DotsCall<A, M>&, Range lists, int32_t* row, int32_t* slot);
  // The same numbers, a row of a matrix after another; `matrix` points to the first of them, the next is `stride`
  // behind. Slots that name no row are left alone.
  void (*dots_by_row)(const DotsCall<A, M>&, const M* matrix, int64_t stride, Range rows, const ByRow<int32_t>& by);
  // to[j to_stride + i] = from[i from_stride + j].
  void (*turn)(const M* from, int64_t from_stride, int64_t rows, int64_t columns, A* to, int64_t to_stride);
};

template <class A>
struct OpsKernels {
  // Sorts lists `by.first` and the `n_lists` - 1 behind it, keeping values or places.
  void (*sort)(const ScatterCall<A>&, int64_t n_lists, const ByRow<A>& by);
  void (*sort_places)(const OpsSizes&, const int32_t* ids, const int32_t* count, int64_t n_lists,
                      const ByRow<int32_t>& by);
  // Adds them to rows and columns of a matrix whose first such number is at `out`, its next row `stride` behind;
  // `fresh`: to nothing instead of what stands there.
  void (*add)(const ScatterCall<A>&, Range rows, Range columns, const ByRow<A>& by, bool fresh, A* out, int64_t stride);
  // `near` has room for min(N, S).
  void (*spikes)(const SpikesCall<A>&, Range rows, int32_t* near);
};

#define RANVIER_DECLARE(NS)                                                              \
  namespace NS {                                                                         \
  template <class A, class M>                                                            \
  OpsMatrixKernels<A, M> ops_matrix_kernels();                                           \
  template <class A>                                                                     \
  OpsKernels<A> ops_kernels();                                                           \
  extern template OpsMatrixKernels<float, float> ops_matrix_kernels<float, float>();     \
  extern template OpsMatrixKernels<float, Bf16> ops_matrix_kernels<float, Bf16>();       \
  extern template OpsMatrixKernels<float, F16> ops_matrix_kernels<float, F16>();         \
  extern template OpsMatrixKernels<double, double> ops_matrix_kernels<double, double>(); \
  extern template OpsKernels<float> ops_kernels<float>();                                \
  extern template OpsKernels<double> ops_kernels<double>();                              \
  }
RANVIER_DECLARE(base)
RANVIER_DECLARE(v3)
RANVIER_DECLARE(v4)
#undef RANVIER_DECLARE

}  // namespace ranvier
