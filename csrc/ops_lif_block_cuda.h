// GPU: a LIF layer over time without recurrent weights, a block a sample: nothing but results leaves the block.
//
// Warps that walk have kOwn words of neurons each and go through kSteps steps, with as many currents under way; they
// leave votes and excesses in shared memory. Meanwhile other warps make the lists of the kSteps steps before, a few
// lanes a list. A barrier, and the two halves of shared memory change hands.
#pragma once
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kBlockThreads = 640;

// Lanes that make a list.
RANVIER_HD int list_lanes(int64_t words) { return words <= 8 ? 8 : words <= 16 ? 16 : 32; }
// What is in shared memory, twice.
template <class A, int kSteps>
struct BlockRoom {
  static RANVIER_HD size_t bytes(int64_t words) { return kSteps * words * (kWarp * sizeof(A) + sizeof(uint2)); }
};

template <class A, int kOwn, int kSteps>
static __global__ void __launch_bounds__(kBlockThreads, sizeof(A) == 4 ? 2 : 1) lif_block(LifForwardCall<A> call) {
  extern __shared__ uint4 block_shared[];
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int words = int(words_of(z.n)), width = words * kWarp, walkers = (words + kOwn - 1) / kOwn;
  const int64_t sample = blockIdx.x;
  const Sample at = sample_of(z, sample);
  // who fires and who nearly does (2, kSteps, words); v - threshold (2, kSteps, width)
  uint2* const votes = reinterpret_cast<uint2*>(block_shared);
  A* const excesses = reinterpret_cast<A*>(votes + (2 * kSteps * words + 1) / 2 * 2);
  const int32_t steps = int32_t(z.t), slots = int32_t(z.s);
  const bool walks = warp < walkers;

  // Of a thread that walks.
  const int n0 = warp * kOwn * kWarp + lane;
  const int64_t current_step = z.r * z.n;
  Neuron<A> neuron[kOwn];
  A kept[kOwn], next[kSteps][kOwn];
  const A* current = call.currents + at.first * z.n + n0;
  const auto load = [&](int32_t t, A(&x)[kOwn]) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k) x[k] = t < steps && n0 + k * kWarp < z.n ? __ldcs(current + k * kWarp) : A(0);
    current = held(current + current_step);
  };
  if (walks) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const int n = n0 + k * kWarp;
      neuron[k].load(call.parameters + at.group * kLifRows * z.n, z.n, n);
      const A v = n < z.n ? call.v0[sample * z.n + n] : A(0);
      kept[k] = v > neuron[k].threshold ? A(0) : v;
    }
    RANVIER_UNROLL
    for (int u = 0; u < kSteps; ++u) load(u, next[u]);
  }
  // Of one that makes lists.
  const int lanes = list_lanes(words), own_words = (words + lanes - 1) / lanes;
  const int at_once = kWarp / lanes, place = lane % lanes;

  for (int32_t t0 = 0; t0 < steps + kSteps; t0 += kSteps) {
    const int half = t0 / kSteps % 2;
    if (walks) {
      RANVIER_UNROLL
      for (int u = 0; u < kSteps; ++u) {
        if (t0 + u >= steps) break;
        RANVIER_UNROLL
        for (int k = 0; k < kOwn; ++k) {
          const A v = neuron[k].decay * kept[k] + neuron[k].scale * next[u][k];
          const bool fires = v > neuron[k].threshold, nears = v > neuron[k].near && v <= neuron[k].threshold;
          const uint32_t fire = __ballot_sync(kAll, fires), close = __ballot_sync(kAll, nears);
          const int row = half * kSteps + u, word = warp * kOwn + k;
          if (word < words) {
            excesses[row * width + n0 + k * kWarp] = v - neuron[k].threshold;
            if (lane == 0) votes[row * words + word] = uint2{fire, close};
          }
          kept[k] = fires ? A(0) : v;
          if (t0 + u == steps - 1 && n0 + k * kWarp < z.n) call.v_last[sample * z.n + n0 + k * kWarp] = v;
        }
        load(t0 + u + kSteps, next[u]);
      }
    }
    for (int number0 = (warp - walkers) * at_once; !walks && t0 > 0 && number0 < kSteps;
         number0 += (int(blockDim.x) / kWarp - walkers) * at_once) {
      const int number = number0 + lane / lanes;
      const int32_t t = t0 - kSteps + number;
      const bool here = number < kSteps && t < steps;
      const int row = (1 - half) * kSteps + (here ? number : 0);
      const int64_t list = at.first + t * z.r;
      const uint2* vote = votes + row * words;
      const A* excess_of = excesses + row * width;
      const int first = place * own_words, end = first + own_words < words ? first + own_words : words;
      uint32_t mine = 0;
      for (int word = first; word < end; ++word) {
        const uint2 x = vote[word];
        mine += __popc(x.x) | __popc(x.y) << 16;
        if (here) call.fired[list * words + word] = x.x;
      }
      uint32_t sum = mine;
      for (int k = 1; k < lanes; k *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, sum, k, lanes);
        if (place >= k) sum += other;
      }
      const uint32_t all = __shfl_sync(kAll, sum, lanes - 1, lanes);
      if (here) {
        const int32_t firing = int32_t(all & 0xffff), nearly = int32_t(all >> 16);
        const int32_t spikes = firing < slots ? firing : slots, room = slots - spikes;
        const int32_t close = nearly < room ? nearly : room;
        int32_t* const ids = call.ids + list * z.s;
        A* const excess = call.excess + list * z.s;
        int32_t before = int32_t((sum - mine) & 0xffff), before_near = spikes + int32_t((sum - mine) >> 16);
        for (int word = first; word < end; ++word) {
          const uint2 x = vote[word];
          for (uint32_t rest = x.x | x.y; rest; rest &= rest - 1) {
            const int n = word * kWarp + __ffs(rest) - 1;
            const int32_t slot = x.x & rest & (0 - rest) ? before++ : before_near++;
            if (slot < slots) ids[slot] = n, excess[slot] = excess_of[n];
          }
        }
        for (int32_t slot = spikes + close + place; slot < slots; slot += lanes) ids[slot] = 0, excess[slot] = A(0);
        if (place == 0) {
          call.n_spikes[list] = spikes, call.n_lost[list] = firing - spikes;
          call.n_near[list] = close, call.n_near_dropped[list] = nearly - close;
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace ops
}  // namespace ranvier
