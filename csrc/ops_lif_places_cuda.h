// GPU: where the numbers of a LIF layer over time are, the parameters of a neuron, and who is drawn by a window.
#pragma once
#include "ops_lif_call.h"
#include "warp_cuda.h"

namespace ranvier {
namespace ops {

static_assert(kWord == kWarp);  // a vote of a warp is a word of `fired`

// A sample is one of Q * R. Its list of step t is number first + t * r of the Q * T * R lists.
struct Sample {
  int64_t group, first;
};
__device__ __forceinline__ Sample sample_of(const LifLoopSizes& z, int64_t sample) {
  const int64_t group = sample / z.r;
  return {group, group * z.t * z.r + (sample - group * z.r)};
}

__device__ __forceinline__ int32_t used(int32_t count, int64_t slots) {
  return count < 0 ? 0 : count < slots ? count : int32_t(slots);
}

// What a thread that has no neuron has never fires, and is on no list.
template <class A>
struct Neuron {
  A decay = 0, scale = 0, threshold = A(INFINITY), near = A(INFINITY);
  __device__ __forceinline__ void load(const A* parameters, int64_t n_neurons, int64_t n) {
    if (n >= n_neurons) return;
    decay = __ldg(parameters + kDecay * n_neurons + n), scale = __ldg(parameters + kScale * n_neurons + n);
    threshold = __ldg(parameters + kThreshold * n_neurons + n), near = __ldg(parameters + kNear * n_neurons + n);
  }
};

// Whether a neuron nearly fires; one that is drawn does whatever its voltage is, unless that is -inf or no number.
template <class A>
__device__ __forceinline__ bool nearly_fires(const Neuron<A>& x, A v, bool drawn) {
  return v > (drawn ? -A(INFINITY) : x.near) && v <= x.threshold;
}

__device__ __forceinline__ int2 window_of(const int32_t* windows, int64_t list) {
  return __ldg(reinterpret_cast<const int2*>(windows) + list);
}
// Bits 0 ... n - 1 of a word.
__device__ __forceinline__ uint32_t bits_below(int32_t n) { return n <= 0 ? 0 : n < kWarp ? (1u << n) - 1 : kAll; }
// The neurons n ... n + 31 that a window (the first, how many) draws, as bits.
__device__ __forceinline__ uint32_t drawn_bits(int2 window, int32_t n_neurons, int32_t n) {
  const int32_t first = window.x < 0 ? 0 : window.x < n_neurons ? window.x : n_neurons - 1;
  const int32_t many = window.y < 0 ? 0 : window.y < n_neurons ? window.y : n_neurons;
  const int32_t before_end = many < n_neurons - first ? many : n_neurons - first;
  return (bits_below(first + before_end - n) & ~bits_below(first - n)) | bits_below(many - before_end - n);
}
// The bit of this lane in the word that lane `of` has.
__device__ __forceinline__ bool bit_of(uint32_t word, int of, int lane) {
  return __shfl_sync(kAll, word, of) >> lane & 1;
}

// A pointer that the compiler takes as it is: of a loop that it unrolls it would otherwise hold one for each turn.
template <class T>
__device__ __forceinline__ T* held(T* place) {
  asm volatile("" : "+l"(place));
  return place;
}

// Adds up over the lanes below this one.
__device__ __forceinline__ uint32_t sum_below(uint32_t x, int lane, uint32_t& all) {
  uint32_t sum = x;
  RANVIER_UNROLL
  for (int k = 1; k < kWarp; k *= 2) {
    const uint32_t y = __shfl_up_sync(kAll, sum, k);
    if (lane >= k) sum += y;
  }
  all = __shfl_sync(kAll, sum, kWarp - 1);
  return sum - x;
}

}  // namespace ops
}  // namespace ranvier
