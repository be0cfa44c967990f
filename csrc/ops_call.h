// What an FFI handler of ranvier.ops hands to its kernel, on the CPU and on the GPU: sizes and pointers.
//
// A call has Q groups of R lists with S slots each, and P matrices (N, C): one shared by all groups (P = 1), or one a
// group (P = Q, P = 0 where Q = 0). A list names rows of its group's matrix; the first `count` of its slots are used,
// and a count outside of 0 ... S means the nearest of the two. A used slot with an id outside of 0 ... N - 1 is as if
// it were not used. An id may stand in a list more than once. Everything is row-major and dense. Sums have one order,
// whatever the number of threads. Operators called "turned" have the matrix, or its derivative, as (P, C, N).
#pragma once
#include <cstdint>

namespace ranvier {

// Numbers of 16 bits as they lie in memory.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct OpsSizes {
  int64_t q, r, s;  // Q, R, S
  int64_t p, n, c;  // P, N, C
};

// out[q, r, :] = sum over s < count of values[s] matrix[ids[s], :]. A: of sums (float, double); M: of the matrix.
template <class A, class M>
struct GatherCall {
  OpsSizes size;
  const A* values;       // (Q, R, S)
  const int32_t* ids;    // (Q, R, S)
  const int32_t* count;  // (Q, R)
  const M* matrix;       // (P, N, C)
  A* out;                // (Q, R, C) fully written
};

// out[p, i, :] = sum over q of p, r, s < count with ids[s] = i of values[s] g[q, r, :].
template <class A>
struct ScatterCall {
  OpsSizes size;
  const A* values;       // (Q, R, S)
  const int32_t* ids;    // (Q, R, S)
  const int32_t* count;  // (Q, R)
  const A* g;            // (Q, R, C)
  A* out;                // (P, N, C) fully written
};

// out[q, r, s] = <matrix[ids[s], :], g[q, r, :]> for s < count, else 0.
template <class A, class M>
struct DotsCall {
  OpsSizes size;
  const int32_t* ids;    // (Q, R, S)
  const int32_t* count;  // (Q, R)
  const M* matrix;       // (P, N, C)
  const A* g;            // (Q, R, C)
  A* out;                // (Q, R, S) fully written
};

// out[q, r, i] = sum over s < count with ids[s] = i of values[s], in the order of the list. O: of the result, A or one
// that sums are rounded to at the end. P and C are not used.
template <class A, class O>
struct DensifyCall {
  OpsSizes size;
  const A* values;              // (Q, R, S)
  const int32_t* ids;           // (Q, R, S)
  const int32_t* count;         // (Q, R)
  O* out;                       // (Q, R, N) fully written
  int64_t ids_end = INT64_MAX;  // on the GPU: ids from there on are none, where a row has more numbers than that
};

// Gather, scatter and dots by dense products of numbers of a kind (ranvier/ops/products.py); every group has a matrix.
enum class DenseWord : int64_t { kFloat32, kTf32, kBfloat16, kSplit };

struct DenseCall {
  OpsSizes size;  // P = Q
  DenseWord word;
  int64_t piece;         // lists that are computed at a time
  int64_t parts;         // of the matrix, which is their sum; 1 unless the word is split
  int64_t row;           // from a row of the matrix to the next; of 16 bits, what stands between is 0
  int64_t high;          // rows of the matrix, those behind N are 0
  bool turned;           // of gather: the matrix is (C, N)
  const float* values;   // (Q, R, S), not of dots
  const int32_t* ids;    // (Q, R, S)
  const int32_t* count;  // (Q, R)
  const void* matrix;    // (parts, Q, high, row), or turned (parts, Q, C, row): floats, or Bf16
  const float* g;        // (Q, R, C), not of gather
  float* out;            // as those of the other calls, fully written
  // whether products are of numbers of 16 bits
  bool halves() const { return word == DenseWord::kBfloat16 || word == DenseWord::kSplit; }
};

// The neurons that fire (state > threshold) and then those that nearly do (near < state <= threshold), each ascending.
// Spikes that find no slot are lost; the others take the slots that spikes left.
template <class A>
struct SpikesCall {
  int64_t r, n, s;           // R, N, S
  int64_t threshold_row;     // from a row of `threshold` to the next: 0 where all share one
  int64_t threshold_neuron;  // from a neuron to the next: 0 or 1
  int64_t near_row, near_neuron;
  const A* state;              // (R, N)
  const A *threshold, *near;   // (R or 1, N or 1)
  int32_t* ids;                // (R, S) 0 in slots that are not used
  int32_t *n_spikes, *n_near;  // (R,) in the list
  int32_t* n_lost;             // (R,) spikes that are not
  int32_t* n_near_dropped;     // (R,) near ones that are not
};

}  // namespace ranvier
