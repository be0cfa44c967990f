// GPU: the walk back through a LIF layer over time without recurrent weights.
//
// A chunk of steps at a time, two kernels. `lif_sort`: a warp has a list, marks its neurons in words, and puts the
// cotangents of its entries side by side in the order of their neurons. `lif_walk_back`: a warp has 32 neurons of a
// sample, each lane one; a lane holds the words of one of 32 steps and tells them to the others when it is that step's
// turn. The cotangents of kBackAhead steps are under way. A number of d_currents is written once, and not read.
#pragma once
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kBackThreads = 128, kBackAhead = 8;
constexpr int kSortThreads = 256, kSortAhead = 4;  // entries of a lane that are under way
constexpr int64_t kSortWords = 512;                // words of a list that a warp has in shared memory

// Steps first ... first + steps - 1, and what the sorting leaves for the walk.
template <class A>
struct LifBackChunk {
  int64_t first, steps;
  uint2* words;   // (steps, Q * R, W): who is listed; where in `cotangents` theirs begin
  A* cotangents;  // (steps, Q * R, S)
};

template <class A>
static __global__ void __launch_bounds__(kSortThreads) lif_sort(LifBackwardCall<A> call, LifBackChunk<A> chunk) {
  extern __shared__ uint32_t sort_shared[];
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp;
  const int64_t words = words_of(z.n), samples = z.q * z.r;
  const int64_t number = (int64_t(blockIdx.x) * kSortThreads + threadIdx.x) / kWarp;
  if (number >= chunk.steps * samples) return;
  const int32_t window = int32_t(words < kSortWords ? words : kSortWords);
  uint32_t* const listed = sort_shared + threadIdx.x / kWarp * 2 * window;
  uint32_t* const before = listed + window;
  const int64_t step = number / samples, sample = number - step * samples;
  const int64_t list = sample_of(z, sample).first + (chunk.first + step) * z.r;
  const int32_t slots = int32_t(z.s), count = used(call.n_listed[list], z.s);
  const int32_t* ids = call.ids + list * z.s;
  const A* cts = call.ct_excess + list * z.s;
  uint32_t base = uint32_t(number * z.s);
  for (int64_t first = 0; first < words; first += window) {
    const int32_t here = int32_t(words - first < window ? words - first : window);
    // Calls body(cotangent, word in the window, bit) for entries of neurons of this window.
    const auto entries = [&](auto body) {
      for (int32_t s0 = lane; s0 < count; s0 += kSortAhead * kWarp) {
        int32_t id[kSortAhead];
        A ct[kSortAhead];
        RANVIER_UNROLL
        for (int k = 0; k < kSortAhead; ++k) {
          const int32_t s = s0 + k * kWarp;
          if (s - lane >= count) break;
          id[k] = s < count ? __ldg(ids + s) : -1, ct[k] = s < count ? __ldg(cts + s) : A(0);
        }
        RANVIER_UNROLL
        for (int k = 0; k < kSortAhead; ++k) {
          if (s0 - lane + k * kWarp >= count) break;
          const int64_t word = (id[k] >> 5) - first;
          if (id[k] >= 0 && id[k] < z.n && word >= 0 && word < here) body(ct[k], word, 1u << (id[k] & 31));
        }
      }
    };
    for (int32_t k = lane; k < here; k += kWarp) listed[k] = 0;
    __syncwarp();
    entries([&](A, int64_t word, uint32_t bit) { atomicOr(listed + word, bit); });
    __syncwarp();
    for (int32_t k0 = 0; k0 < here; k0 += kWarp) {
      const int32_t k = k0 + lane;
      const uint32_t mine = k < here ? listed[k] : 0;
      uint32_t all;
      const uint32_t place = base + sum_below(__popc(mine), lane, all);
      if (k < here) before[k] = place, chunk.words[number * words + first + k] = uint2{mine, place};
      base += all;
    }
    __syncwarp();
    entries([&](A ct, int64_t word, uint32_t bit) {
      chunk.cotangents[before[word] + __popc(listed[word] & (bit - 1))] = ct;
    });
    __syncwarp();
  }
  for (int32_t s = lane; s < slots; s += kWarp) call.d_excess[list * z.s + s] = s < count ? __ldg(cts + s) : A(0);
}

template <class A>
static __global__ void __launch_bounds__(kBackThreads) lif_walk_back(LifBackwardCall<A> call, LifBackChunk<A> chunk) {
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp;
  const int64_t words = words_of(z.n), samples = z.q * z.r;
  const int64_t warp = (int64_t(blockIdx.x) * kBackThreads + threadIdx.x) / kWarp;
  if (warp >= samples * words) return;
  const int64_t sample = warp / words, word = warp - sample * words, n = word * kWarp + lane;
  const bool here = n < z.n;
  const Sample at = sample_of(z, sample);
  Neuron<A> neuron;
  neuron.load(call.parameters + at.group * kLifRows * z.n, z.n, n);
  const int32_t steps = int32_t(chunk.steps);
  const int64_t last = chunk.first + chunk.steps - 1, list = at.first + last * z.r;
  const bool top = last == z.t - 1;
  // What lam_{t+1} leaves: decay lam_{t+1}, without the reset r_{t+1}, which is that of who fires in step t.
  A lam = here ? (top ? call.ct_v_last : call.d_v0)[sample * z.n + n] : A(0);

  // Numbers of steps from here on count down from the last of the chunk.
  struct Words {
    uint32_t listed, before, fired;
  };
  const auto words_at = [&](int32_t u) {
    Words x{0, 0, 0};
    if (u + lane < steps) {
      const uint2 y = __ldg(chunk.words + (int64_t(steps - 1 - u - lane) * samples + sample) * words + word);
      x.listed = y.x, x.before = y.y;
      // the cotangent of the last voltage is no product with a voltage before it
      x.fired = top && u + lane == 0 ? 0 : __ldg(call.fired + (list - int64_t(u + lane) * z.r) * words + word);
    }
    return x;
  };
  const uint32_t below = (1u << lane) - 1;
  const auto fetch = [&](const Words& x, int k0, A(&ct)[kBackAhead]) {
    RANVIER_UNROLL
    for (int k = 0; k < kBackAhead; ++k) {
      const uint32_t listed = __shfl_sync(kAll, x.listed, k0 + k), before = __shfl_sync(kAll, x.before, k0 + k);
      ct[k] = listed >> lane & 1 ? __ldg(chunk.cotangents + before + __popc(listed & below)) : A(0);
    }
  };
  A* d_current = call.d_currents + list * z.n + n;
  const int64_t d_current_step = z.r * z.n;
  Words now = words_at(0);
  A next[kBackAhead];
  fetch(now, 0, next);
  for (int32_t u0 = 0; u0 < steps; u0 += kWarp) {
    const Words later = words_at(u0 + kWarp);
    RANVIER_UNROLL
    for (int part = 0; part < kWarp; part += kBackAhead) {
      A ct[kBackAhead];
      RANVIER_UNROLL
      for (int k = 0; k < kBackAhead; ++k) ct[k] = next[k];
      if (part + kBackAhead < kWarp)
        fetch(now, part + kBackAhead, next);
      else
        fetch(later, 0, next);
      RANVIER_UNROLL
      for (int k = 0; k < kBackAhead; ++k) {
        const uint32_t fired = __shfl_sync(kAll, now.fired, part + k);
        if (u0 + part + k >= steps) continue;
        lam = (fired >> lane & 1 ? A(0) : lam) + ct[k];
        if (here) *d_current = neuron.scale * lam;
        d_current = held(d_current - d_current_step);
        lam *= neuron.decay;
      }
    }
    now = later;
  }
  if (!here) return;
  const bool first = chunk.first == 0;
  call.d_v0[sample * z.n + n] = first && !(call.v0[sample * z.n + n] <= neuron.threshold) ? A(0) : lam;
}

}  // namespace ops
}  // namespace ranvier
