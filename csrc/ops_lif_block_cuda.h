// GPU: a LIF layer over time without recurrent weights, a block a sample: nothing but results leaves the block.
//
// Warps that walk have kOwn words of neurons each and go through kSteps steps; where a current was in shared memory
// they leave by how much the threshold is exceeded, and votes beside. Meanwhile the currents of the next steps are on
// their way there, each fetched by the thread that needs it, and other warps make the lists of the steps before, a few
// lanes a list. A barrier, and the three parts of shared memory change hands. Of windows (kSampled), too, a warp gets
// those of the next steps, a lane a step: they come to where its votes will be, and become bits of who is drawn.
#pragma once
#include "copy_cuda.h"
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kBlockThreads = 768;

// Lanes that make a list.
RANVIER_HD int list_lanes(int64_t words) { return words <= 8 ? 8 : words <= 16 ? 16 : 32; }
// Bytes of shared memory.
template <class A, int kSteps>
constexpr size_t block_room(int64_t words) {
  return 3 * kSteps * words * (kWarp * sizeof(A) + sizeof(uint2)) + 16;
}

template <class A, int kOwn, int kSteps, bool kSampled>
static __global__ void __launch_bounds__(kBlockThreads, sizeof(A) == 4 ? 2 : 1) lif_block(LifForwardCall<A> call) {
  extern __shared__ uint4 block_shared[];
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int words = int(words_of(z.n)), width = words * kWarp, walkers = (words + kOwn - 1) / kOwn;
  const int64_t sample = blockIdx.x;
  const Sample at = sample_of(z, sample);
  // who fires and who nearly does (3, kSteps, words); currents, then v - threshold (3, kSteps, width)
  uint2* const votes = reinterpret_cast<uint2*>(block_shared);
  A* const numbers = reinterpret_cast<A*>(votes + (3 * kSteps * words + 1) / 2 * 2);
  const int32_t steps = int32_t(z.t), slots = int32_t(z.s);
  const bool walks = warp < walkers;

  // Of a thread that walks.
  const int n0 = warp * kOwn * kWarp + lane;
  const int64_t current_step = z.r * z.n;
  Neuron<A> neuron[kOwn];
  A v[kOwn], kept[kOwn];
  bool here[kOwn], there[kOwn];  // the neuron exists; one of its word does
  const A* current = call.currents + at.first * z.n + n0;
  const auto fetch = [&](int32_t left, int part) {
    A* to = numbers + part * kSteps * width + n0;
    RANVIER_UNROLL
    for (int u = 0; u < kSteps; ++u, to += width) {
      if (u >= left) break;
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k)
        if (here[k]) copy(to + k * kWarp, current + k * kWarp);
      current = held(current + current_step);
    }
    if constexpr (kSampled) {
      static_assert(kSteps <= kWarp);
      const auto windows = reinterpret_cast<const uint2*>(call.window) + at.first + (steps - left) * z.r;
      if (lane < kSteps && lane < left)
        copy(votes + (part * kSteps + lane) * words + warp * kOwn, windows + lane * z.r);
    }
    close_group();
  };
  if (walks) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const int n = n0 + k * kWarp;
      here[k] = n < z.n, there[k] = warp * kOwn + k < words;
      neuron[k].load(call.parameters + at.group * kLifRows * z.n, z.n, n);
      v[k] = here[k] ? call.v0[sample * z.n + n] : A(0);
      kept[k] = v[k] > neuron[k].threshold ? A(0) : v[k];
    }
    fetch(steps, 0);
  }
  // Of one that makes lists.
  const int lanes = list_lanes(words), own_words = (words + lanes - 1) / lanes;
  const int at_once = kWarp / lanes, place = lane % lanes;

  int part = 0;
  for (int32_t t0 = 0; t0 < steps + kSteps; t0 += kSteps) {
    const int next = part == 2 ? 0 : part + 1, last = part == 0 ? 2 : part - 1;
    if (walks) {
      fetch(steps - t0 - kSteps, next);
      arrived<1>();
      uint32_t drawn[kOwn] = {};  // bit u: in the step u
      if constexpr (kSampled) {
        if (lane < kSteps && lane < steps - t0) {
          uint2* const of = votes + (part * kSteps + lane) * words + warp * kOwn;
          const uint2 window = *of;
          RANVIER_UNROLL
          for (int k = 0; k < kOwn; ++k)
            if (there[k])
              of[k].y = drawn_bits(int2{int(window.x), int(window.y)}, int32_t(z.n), (warp * kOwn + k) * kWarp);
        }
        __syncwarp();
        // before the votes come to where the windows were
        RANVIER_UNROLL
        for (int u = 0; u < kSteps; ++u) {
          if (u >= steps - t0) break;
          RANVIER_UNROLL
          for (int k = 0; k < kOwn; ++k)
            if (there[k]) drawn[k] |= (votes[(part * kSteps + u) * words + warp * kOwn + k].y >> lane & 1) << u;
        }
        __syncwarp();
      }
      A* number = numbers + part * kSteps * width + n0;
      A input[kSteps][kOwn];
      RANVIER_UNROLL
      for (int u = 0; u < kSteps; ++u) {
        RANVIER_UNROLL
        for (int k = 0; k < kOwn; ++k) input[u][k] = here[k] ? number[u * width + k * kWarp] : A(0);
      }
      uint2* vote = votes + part * kSteps * words + warp * kOwn;
      RANVIER_UNROLL
      for (int u = 0; u < kSteps; ++u, number += width, vote += words) {
        if (u >= steps - t0) break;
        RANVIER_UNROLL
        for (int k = 0; k < kOwn; ++k) {
          v[k] = neuron[k].decay * kept[k] + neuron[k].scale * input[u][k];
          const bool fires = v[k] > neuron[k].threshold;
          const bool nears = nearly_fires(neuron[k], v[k], kSampled && drawn[k] >> u & 1);
          const uint32_t fire = __ballot_sync(kAll, fires), close = __ballot_sync(kAll, nears);
          if (here[k]) number[k * kWarp] = v[k] - neuron[k].threshold;
          if (lane == 0 && there[k]) vote[k] = uint2{fire, close};
          kept[k] = fires ? A(0) : v[k];
        }
      }
    }
    for (int number0 = (warp - walkers) * at_once; !walks && t0 > 0 && number0 < kSteps;
         number0 += (int(blockDim.x) / kWarp - walkers) * at_once) {
      const int number = number0 + lane / lanes;
      const int32_t t = t0 - kSteps + number;
      const bool asked = number < kSteps && t < steps;
      const int row = last * kSteps + (asked ? number : 0);
      const int64_t list = at.first + t * z.r;
      const uint2* vote = votes + row * words;
      const A* excess_of = numbers + row * width;
      const int first = place * own_words, end = first + own_words < words ? first + own_words : words;
      uint32_t mine = 0;
      for (int word = first; word < end; ++word) {
        const uint2 x = vote[word];
        mine += __popc(x.x) | __popc(x.y) << 16;
        if (asked) call.fired[list * words + word] = x.x;
      }
      uint32_t sum = mine;
      for (int k = 1; k < lanes; k *= 2) {
        const uint32_t other = __shfl_up_sync(kAll, sum, k, lanes);
        if (place >= k) sum += other;
      }
      const uint32_t all = __shfl_sync(kAll, sum, lanes - 1, lanes);
      if (asked) {
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
    part = next;
    __syncthreads();
  }
  RANVIER_UNROLL
  for (int k = 0; k < kOwn; ++k)
    if (walks && here[k]) call.v_last[sample * z.n + n0 + k * kWarp] = v[k];
}

}  // namespace ops
}  // namespace ranvier
