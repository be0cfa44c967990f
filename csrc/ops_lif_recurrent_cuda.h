// GPU: a LIF layer over time with recurrent weights. A block has a sample and all its neurons: who fires in a step
// decides which rows of w_rec all columns need in the next.
//
// A warp has kOwn words of neurons, so that places in a list are sums over warps; two barriers a step: when all have
// counted, and when the list is written. The list of spikes is in shared memory too, where it fits. Where kOwn is 0 a
// warp has as many words as it takes, and voltages are in memory.
#pragma once
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

// Threads of a block, at most: a thread of as many registers fits.
template <class A>
constexpr int kStepThreads = sizeof(A) == 4 ? 1024 : 512;
constexpr int kStepsEarly = 6;  // steps that L2 is asked ahead for

__device__ __forceinline__ void ask_early(const void* place) { asm volatile("prefetch.global.L2 [%0];" ::"l"(place)); }

// Adds the rows of `w` (its first number is in the thread's first column) that `ids` name, in their order.
template <int kRows, class A, int kColumns>
__device__ __forceinline__ void add_some_rows(const A* w, int64_t n_neurons, const int32_t* ids, int32_t count,
                                              int columns, A (&sums)[kColumns]) {
  A x[kRows][kColumns];
  RANVIER_UNROLL
  for (int e = 0; e < kRows; ++e) {
    const A* row = w + (e < count ? ids[e] : 0) * n_neurons;
    RANVIER_UNROLL
    for (int k = 0; k < kColumns; ++k) x[e][k] = e < count && k < columns ? __ldg(row + k * kWarp) : A(0);
  }
  RANVIER_UNROLL
  for (int e = 0; e < kRows; ++e) {
    RANVIER_UNROLL
    for (int k = 0; k < kColumns; ++k) sums[k] += x[e][k];
  }
}
template <class A, int kColumns>
__device__ __forceinline__ void add_rows(const A* w, int64_t n_neurons, const int32_t* ids, int32_t count, int columns,
                                         A (&sums)[kColumns]) {
  constexpr int kMany = kColumns >= 4 ? 4 : 8, kFew = kColumns >= 4 ? 2 : 4;
  int32_t s = 0;
  for (; s + kFew < count; s += kMany) add_some_rows<kMany>(w, n_neurons, ids + s, count - s, columns, sums);
  if (s < count) add_some_rows<kFew>(w, n_neurons, ids + s, count - s, columns, sums);
}

// Neurons that fire and that nearly do; where no sample has more than 65,535 of them, in one number.
template <bool kPacked>
struct Votes {
  int32_t fired, near;
  using Stored = int2;
  __device__ __forceinline__ Stored stored() const { return {fired, near}; }
  static __device__ __forceinline__ Votes sum(Stored x) {
    return {__reduce_add_sync(kAll, x.x), __reduce_add_sync(kAll, x.y)};
  }
};
template <>
struct Votes<true> {
  int32_t fired, near;
  using Stored = int32_t;
  __device__ __forceinline__ Stored stored() const { return fired | near << 16; }
  static __device__ __forceinline__ Votes sum(Stored x) {
    const uint32_t all = uint32_t(__reduce_add_sync(kAll, x));
    return {int32_t(all & 0xffff), int32_t(all >> 16)};
  }
};

// `room`: ids that fit in shared memory.
template <class A, int kOwn, bool kSampled>
static __global__ void __launch_bounds__(kStepThreads<A>) lif_steps(LifForwardCall<A> call, int32_t room) {
  using Vote = Votes<(kOwn > 0)>;
  extern __shared__ int32_t steps_shared[];
  __shared__ typename Vote::Stored votes[kWarp];
  constexpr int kColumns = kOwn ? kOwn : 1;
  const LifLoopSizes& z = call.size;
  const int threads = blockDim.x, warps = threads / kWarp, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t words = words_of(z.n), sample = blockIdx.x;
  const Sample at = sample_of(z, sample);
  const int64_t own = kOwn ? kOwn : (words + warps - 1) / warps, word0 = warp * own, n0 = word0 * kWarp + lane;
  const int32_t slots = int32_t(z.s), steps = int32_t(z.t);
  const uint32_t below = (1u << lane) - 1;
  const A* const w_rec = call.w_rec + at.group * z.n * z.n;
  const A* const parameters = call.parameters + at.group * kLifRows * z.n;
  const A* const v0 = call.v0 + sample * z.n;
  A* const v_last = call.v_last + sample * z.n;
  // How many of the thread's columns exist.
  const int columns = n0 < z.n ? int((z.n - n0 + kWarp - 1) / kWarp < own ? (z.n - n0 + kWarp - 1) / kWarp : own) : 0;

  // What goes along with the steps.
  const int64_t n_step = z.r * z.n, s_step = z.r * z.s, w_step = z.r * words;
  const A* current = call.currents + at.first * z.n + n0;
  int32_t* ids = call.ids + at.first * z.s;
  A* excess = call.excess + at.first * z.s;
  uint32_t* fired_word = call.fired + at.first * words + word0;
  // The first four threads have a count each.
  int32_t* count_of = (threadIdx.x == 0   ? call.n_spikes
                       : threadIdx.x == 1 ? call.n_near
                       : threadIdx.x == 2 ? call.n_lost
                                          : call.n_near_dropped) +
                      at.first;

  Neuron<A> neuron[kColumns];
  A v[kColumns], kept[kColumns], next[kColumns];
  if constexpr (kOwn > 0) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const int64_t n = n0 + k * kWarp;
      neuron[k].load(parameters, z.n, n);
      v[k] = k < columns ? v0[n] : A(0);
      kept[k] = v[k] > neuron[k].threshold ? A(0) : v[k];
      next[k] = k < columns ? __ldcs(current + k * kWarp) : A(0);
    }
  }

  int2 next_window{0, 0};
  if constexpr (kSampled) next_window = window_of(call.window, at.first);

  const bool shared_list = room >= (z.s < z.n ? z.s : z.n);
  int32_t count = 0;
  const int32_t* spikes = steps_shared;
  for (int32_t t = 0; t < steps; ++t) {
    // the sum of recurrent weights of kColumns columns from n on
    const auto recurrent = [&](int64_t n, int columns, A(&sums)[kColumns]) {
      if (t > 0) {
        add_rows(w_rec + n, z.n, spikes, count, columns, sums);
        return;
      }
      const int32_t listed = used(call.n_spikes0[sample], z.s);
      RANVIER_ROLLED
      for (int32_t s = 0; s < listed; ++s) {
        const int32_t id = __ldg(call.ids0 + sample * z.s + s);
        const A value = __ldg(call.values0 + sample * z.s + s);
        if (id < 0 || id >= z.n) continue;
        RANVIER_UNROLL
        for (int k = 0; k < kColumns; ++k)
          if (k < columns) sums[k] += value * __ldg(w_rec + id * z.n + n + k * kWarp);
      }
    };
    Vote mine{0, 0};
    const int2 window = next_window;
    uint32_t my_drawn = 0;  // of the word of the lane's number
    if constexpr (kSampled) {
      if (t + 1 < steps) next_window = window_of(call.window, at.first + (t + 1) * z.r);
      if constexpr (kOwn > 0) my_drawn = drawn_bits(window, int32_t(z.n), int32_t(word0 + lane) * kWarp);
    }
    // whether the thread's neuron of word k nearly fires
    const auto is_near = [&](int64_t k, const Neuron<A>& x, A v) {
      if constexpr (!kSampled) return nearly_fires(x, v, false);
      if constexpr (kOwn > 0) return nearly_fires(x, v, bit_of(my_drawn, int(k), lane));
      return nearly_fires(x, v, drawn_bits(window, int32_t(z.n), int32_t(word0 + k) * kWarp) >> lane & 1);
    };
    if constexpr (kOwn > 0) {
      A input[kOwn], sums[kOwn] = {};
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        input[k] = next[k];
        if (k < columns && t + 1 < steps) next[k] = __ldcs(current + n_step + k * kWarp);
        if (k < columns && t + kStepsEarly < steps) ask_early(current + kStepsEarly * n_step + k * kWarp);
      }
      recurrent(n0, columns, sums);
      uint32_t my_word = 0;
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        v[k] = neuron[k].decay * kept[k] + neuron[k].scale * (input[k] + sums[k]);
        const bool fires = v[k] > neuron[k].threshold;
        const uint32_t fire = __ballot_sync(kAll, fires), close = __ballot_sync(kAll, is_near(k, neuron[k], v[k]));
        mine.fired += __popc(fire), mine.near += __popc(close);
        if (lane == k) my_word = fire;
        kept[k] = fires ? A(0) : v[k];
      }
      if (lane < kOwn && word0 + lane < words) fired_word[lane] = my_word;
    } else {
      for (int64_t k = 0; k < own; ++k) {
        const int64_t n = n0 + k * kWarp;
        const bool here = n < z.n;
        A sums[1] = {};
        recurrent(n, here, sums);
        neuron[0] = Neuron<A>();
        neuron[0].load(parameters, z.n, n);
        v[0] = here ? (t > 0 ? v_last : v0)[n] : A(0);
        kept[0] = v[0] > neuron[0].threshold ? A(0) : v[0];
        v[0] = neuron[0].decay * kept[0] + neuron[0].scale * ((here ? current[k * kWarp] : A(0)) + sums[0]);
        const uint32_t fire = __ballot_sync(kAll, v[0] > neuron[0].threshold);
        mine.fired += __popc(fire), mine.near += __popc(__ballot_sync(kAll, is_near(k, neuron[0], v[0])));
        if (lane == 0 && word0 + k < words) fired_word[k] = fire;
        if (here) v_last[n] = v[0];
      }
    }
    if (lane == 0) votes[warp] = mine.stored();
    __syncthreads();

    const typename Vote::Stored there = lane < warps ? votes[lane] : Vote{0, 0}.stored();
    const Vote all = Vote::sum(there);
    const int32_t sent = all.fired < slots ? all.fired : slots;
    const int32_t left = slots - sent, close = all.near < left ? all.near : left;
    if (mine.fired || mine.near) {
      Vote before = Vote::sum(lane < warp ? there : Vote{0, 0}.stored());
      before.near += sent;
      const auto enter = [&](int64_t k, const Neuron<A>& x, A v) {
        const int64_t n = n0 + k * kWarp;
        const bool fires = v > x.threshold, nears = is_near(k, x, v);
        const uint32_t fire = __ballot_sync(kAll, fires), close_by = __ballot_sync(kAll, nears);
        const int32_t slot = fires ? before.fired + __popc(fire & below) : before.near + __popc(close_by & below);
        if ((fires || nears) && slot < slots) {
          ids[slot] = int32_t(n), excess[slot] = v - x.threshold;
          if (fires && shared_list) steps_shared[slot] = int32_t(n);
        }
        before.fired += __popc(fire), before.near += __popc(close_by);
      };
      if constexpr (kOwn > 0) {
        RANVIER_UNROLL
        for (int k = 0; k < kOwn; ++k) enter(k, neuron[k], v[k]);
      } else {
        for (int64_t k = 0; k < own; ++k) {
          const int64_t n = n0 + k * kWarp;
          neuron[0] = Neuron<A>();
          neuron[0].load(parameters, z.n, n);
          enter(k, neuron[0], n < z.n ? v_last[n] : A(0));
        }
      }
    }
    RANVIER_ROLLED
    for (int32_t slot = sent + close + int32_t(threadIdx.x); slot < slots; slot += threads)
      ids[slot] = 0, excess[slot] = A(0);
    if (threadIdx.x < 4)
      *count_of = threadIdx.x == 0   ? sent
                  : threadIdx.x == 1 ? close
                  : threadIdx.x == 2 ? all.fired - sent
                                     : all.near - close;
    __syncthreads();
    count = sent;
    if (!shared_list) spikes = ids;
    current += n_step, ids += s_step, excess += s_step, fired_word += w_step, count_of += z.r;
  }
  if constexpr (kOwn > 0) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k)
      if (k < columns) v_last[n0 + k * kWarp] = v[k];
  }
}

}  // namespace ops
}  // namespace ranvier
