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
template <class A, int kColumns>
__device__ __forceinline__ void add_rows(const A* w, int64_t n_neurons, const int32_t* ids, int32_t count, int columns,
                                         A (&sums)[kColumns]) {
  constexpr int kRows = kColumns >= 4 ? 4 : 8;
  for (int32_t s = 0; s < count; s += kRows) {
    A x[kRows][kColumns];
    RANVIER_UNROLL
    for (int e = 0; e < kRows; ++e) {
      const A* row = w + (s + e < count ? ids[s + e] : 0) * n_neurons;
      RANVIER_UNROLL
      for (int k = 0; k < kColumns; ++k) x[e][k] = s + e < count && k < columns ? __ldg(row + k * kWarp) : A(0);
    }
    RANVIER_UNROLL
    for (int e = 0; e < kRows; ++e) {
      RANVIER_UNROLL
      for (int k = 0; k < kColumns; ++k) sums[k] += x[e][k];
    }
  }
}

// `room`: ids that fit in shared memory.
template <class A, int kOwn>
static __global__ void __launch_bounds__(kStepThreads<A>) lif_steps(LifForwardCall<A> call, int32_t room) {
  extern __shared__ int32_t steps_shared[];
  __shared__ int32_t firing[kWarp], nearly[kWarp];
  constexpr int kColumns = kOwn ? kOwn : 1;
  const LifLoopSizes& z = call.size;
  const int threads = blockDim.x, warps = threads / kWarp, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t words = words_of(z.n), sample = blockIdx.x;
  const Sample at = sample_of(z, sample);
  const int64_t own = kOwn ? kOwn : (words + warps - 1) / warps, word0 = warp * own, n0 = word0 * kWarp + lane;
  const int32_t slots = int32_t(z.s);
  const uint32_t below = (1u << lane) - 1;
  const A* const w_rec = call.w_rec + at.group * z.n * z.n;
  const A* const parameters = call.parameters + at.group * kLifRows * z.n;
  const A* const v0 = call.v0 + sample * z.n;
  A* const v_last = call.v_last + sample * z.n;

  // Columns n0, n0 + 32, ... of the thread that exist.
  const auto columns_from = [&](int64_t n) { return n < z.n ? int((z.n - n + kWarp - 1) / kWarp) : 0; };
  const int columns = columns_from(n0);
  Neuron<A> neuron[kColumns];
  A v[kColumns], next[kColumns];
  if constexpr (kOwn > 0) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const int64_t n = n0 + k * kWarp;
      neuron[k].load(parameters, z.n, n);
      v[k] = n < z.n ? v0[n] : A(0);
      next[k] = n < z.n ? __ldcs(call.currents + at.first * z.n + n) : A(0);
    }
  }

  const bool shared_list = room >= (z.s < z.n ? z.s : z.n);
  int32_t count = 0;
  const int32_t* spikes = steps_shared;
  for (int64_t t = 0; t < z.t; ++t) {
    const int64_t list = at.first + t * z.r;
    const A* const current = call.currents + list * z.n;
    int32_t* const ids = call.ids + list * z.s;
    A* const excess = call.excess + list * z.s;
    // the sum of recurrent weights of kColumns columns from n on
    const auto recurrent = [&](int64_t n, int columns, A(&sums)[kColumns]) {
      if (t > 0) {
        add_rows(w_rec + n, z.n, spikes, count, columns, sums);
        return;
      }
      const int32_t listed = used(call.n_spikes0[sample], z.s);
      for (int32_t s = 0; s < listed; ++s) {
        const int32_t id = __ldg(call.ids0 + sample * z.s + s);
        const A value = __ldg(call.values0 + sample * z.s + s);
        if (id < 0 || id >= z.n) continue;
        RANVIER_UNROLL
        for (int k = 0; k < kColumns; ++k)
          if (k < columns) sums[k] += value * __ldg(w_rec + id * z.n + n + k * kWarp);
      }
    };
    // Steps of 32 neurons a warp: body(neurons' word, of the thread, its parameters, its voltage).
    int32_t fired = 0, neared = 0;
    const auto advance = [&](int64_t word, const Neuron<A>& x, A input, A& voltage) {
      voltage = x.decay * (voltage > x.threshold ? A(0) : voltage) + x.scale * input;
      const bool fires = voltage > x.threshold, nears = voltage > x.near && voltage <= x.threshold;
      const uint32_t fire = __ballot_sync(kAll, fires), close = __ballot_sync(kAll, nears);
      fired += __popc(fire), neared += __popc(close);
      if (lane == 0 && word < words) call.fired[list * words + word] = fire;
    };
    if constexpr (kOwn > 0) {
      A input[kOwn], sums[kOwn] = {};
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        input[k] = next[k];
        if (k < columns && t + 1 < z.t) next[k] = __ldcs(current + z.r * z.n + n0 + k * kWarp);
        if (k < columns && t + kStepsEarly < z.t) ask_early(current + kStepsEarly * z.r * z.n + n0 + k * kWarp);
      }
      recurrent(n0, columns, sums);
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) advance(word0 + k, neuron[k], input[k] + sums[k], v[k]);
    } else {
      for (int64_t k = 0; k < own; ++k) {
        const int64_t n = n0 + k * kWarp;
        const bool here = n < z.n;
        A sums[1] = {};
        recurrent(n, here, sums);
        neuron[0] = Neuron<A>();
        neuron[0].load(parameters, z.n, n);
        v[0] = here ? (t > 0 ? v_last : v0)[n] : A(0);
        advance(word0 + k, neuron[0], (here ? current[n] : A(0)) + sums[0], v[0]);
        if (here) v_last[n] = v[0];
      }
    }
    if (lane == 0) firing[warp] = fired, nearly[warp] = neared;
    __syncthreads();

    const int32_t fired_there = lane < warps ? firing[lane] : 0, neared_there = lane < warps ? nearly[lane] : 0;
    const int32_t all_fired = __reduce_add_sync(kAll, fired_there), all_near = __reduce_add_sync(kAll, neared_there);
    const int32_t sent = all_fired < slots ? all_fired : slots;
    const int32_t left = slots - sent, close = all_near < left ? all_near : left;
    int32_t before = __reduce_add_sync(kAll, lane < warp ? fired_there : 0);
    int32_t before_near = sent + __reduce_add_sync(kAll, lane < warp ? neared_there : 0);
    const auto enter = [&](int64_t n, const Neuron<A>& x, A voltage) {
      const bool fires = voltage > x.threshold, nears = voltage > x.near && voltage <= x.threshold;
      const uint32_t fire = __ballot_sync(kAll, fires), close_by = __ballot_sync(kAll, nears);
      const int32_t slot = fires ? before + __popc(fire & below) : before_near + __popc(close_by & below);
      if ((fires || nears) && slot < slots) {
        ids[slot] = int32_t(n), excess[slot] = voltage - x.threshold;
        if (fires && shared_list) steps_shared[slot] = int32_t(n);
      }
      before += __popc(fire), before_near += __popc(close_by);
    };
    if (fired || neared) {
      if constexpr (kOwn > 0) {
        RANVIER_UNROLL
        for (int k = 0; k < kOwn; ++k) enter(n0 + k * kWarp, neuron[k], v[k]);
      } else {
        for (int64_t k = 0; k < own; ++k) {
          const int64_t n = n0 + k * kWarp;
          neuron[0] = Neuron<A>();
          neuron[0].load(parameters, z.n, n);
          enter(n, neuron[0], n < z.n ? v_last[n] : A(0));
        }
      }
    }
    for (int32_t slot = sent + close + int32_t(threadIdx.x); slot < slots; slot += threads)
      ids[slot] = 0, excess[slot] = A(0);
    if (threadIdx.x == 0) {
      call.n_spikes[list] = sent, call.n_lost[list] = all_fired - sent;
      call.n_near[list] = close, call.n_near_dropped[list] = all_near - close;
    }
    __syncthreads();
    count = sent;
    if (!shared_list) spikes = ids;
  }
  if constexpr (kOwn > 0) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k)
      if (k < columns) v_last[n0 + k * kWarp] = v[k];
  }
}

}  // namespace ops
}  // namespace ranvier
