// GPU: a LIF layer over time without recurrent weights, where no neuron knows of another, for samples too large for a
// block, or too few: memory is the limit.
//
// A chunk of steps at a time, two kernels. `lif_walk`: a warp has kOwn words of neurons of a sample and goes through
// the steps with the currents of kAhead of them under way; the votes of a step are words of who fires and who nearly
// does, and what the listed exceed the threshold by goes side by side into the warp's stretch of scratch memory.
// `lif_lists`: kShare warps have a list, add up the words, and put ids and excesses in their slots. Between the two
// only words and what is listed passes, and L2 has most of it: the chunk bounds the room for it, which is for all
// neurons. Of windows (kSampled) each lane of a walk has that of another of the kAhead steps.
#pragma once
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kWalkThreads = 128, kListThreads = 256;
constexpr int kEarlyValues = 4;  // of a word that are under way before their slots are known

// Steps first ... first + steps - 1, and what the walk leaves for the lists.
template <class A>
struct LifChunk {
  int64_t first, steps;
  int own;       // words of a warp
  uint2* words;  // (steps, Q * R, W): who nearly fires; where in its warp's stretch the word's excesses begin
  A* excess;     // (Q * R, ceil(W / own), steps * own * 32)
};

template <class A, int kOwn, int kAhead, bool kSampled>
static __global__ void __launch_bounds__(kWalkThreads) lif_walk(LifForwardCall<A> call, LifChunk<A> chunk) {
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp;
  const int64_t words = words_of(z.n), samples = z.q * z.r, each = (words + kOwn - 1) / kOwn;
  const int64_t warp = (int64_t(blockIdx.x) * kWalkThreads + threadIdx.x) / kWarp;
  if (warp >= samples * each) return;
  const int64_t sample = warp / each, word0 = (warp - sample * each) * kOwn, n0 = word0 * kWarp + lane;
  const Sample at = sample_of(z, sample);
  const int64_t list = at.first + chunk.first * z.r;
  Neuron<A> neuron[kOwn];
  A v[kOwn], kept[kOwn];
  RANVIER_UNROLL
  for (int k = 0; k < kOwn; ++k) {
    const int64_t n = n0 + k * kWarp;
    neuron[k].load(call.parameters + at.group * kLifRows * z.n, z.n, n);
    v[k] = n < z.n ? (chunk.first ? call.v_last : call.v0)[sample * z.n + n] : A(0);
    kept[k] = v[k] > neuron[k].threshold ? A(0) : v[k];
  }

  const int32_t steps = int32_t(chunk.steps);
  const int64_t current_step = z.r * z.n, fired_step = z.r * words, words_step = samples * words;
  const A* current = call.currents + list * z.n + n0;
  const bool writes = lane < kOwn && word0 + lane < words;  // the word of its number
  uint32_t* fired = call.fired + list * words + word0 + lane;
  uint2* near = chunk.words + sample * words + word0 + lane;
  A* const excess = chunk.excess + warp * chunk.steps * (kOwn * kWarp);
  const uint32_t below = (1u << lane) - 1;
  uint32_t listed = 0;

  // Batches of loads: waiting for one load is waiting for all that were issued since, so none is between.
  static_assert(kAhead <= kWarp);
  A next[kAhead][kOwn];
  int2 next_window;
  const auto load = [&](int32_t t0) {
    RANVIER_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k)
        next[u][k] = t0 + u < steps && n0 + k * kWarp < z.n ? __ldcs(current + k * kWarp) : A(0);
      current = held(current + current_step);
    }
    if constexpr (kSampled) {
      const bool asked = lane < kAhead && t0 + lane < steps;
      next_window = asked ? window_of(call.window, list + (t0 + lane) * z.r) : int2{0, 0};
    }
  };
  load(0);
  for (int32_t t0 = 0; t0 < steps; t0 += kAhead) {
    A now[kAhead][kOwn];
    RANVIER_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) now[u][k] = next[u][k];
    }
    uint32_t drawn[kOwn];  // of the lane's step
    if constexpr (kSampled) {
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) drawn[k] = drawn_bits(next_window, int32_t(z.n), int32_t(word0 + k) * kWarp);
    }
    load(t0 + kAhead);
    RANVIER_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      if (t0 + u >= steps) break;
      uint32_t my_fire = 0, my_close = 0, my_place = 0;
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        v[k] = neuron[k].decay * kept[k] + neuron[k].scale * now[u][k];
        const bool fires = v[k] > neuron[k].threshold;
        const bool nears = nearly_fires(neuron[k], v[k], kSampled && bit_of(drawn[k], u, lane));
        const uint32_t fire = __ballot_sync(kAll, fires), close = __ballot_sync(kAll, nears);
        A* const place = held(excess + (listed + __popc((fire | close) & below)));
        if (fires || nears) *place = v[k] - neuron[k].threshold;
        if (lane == k) my_fire = fire, my_close = close, my_place = listed;
        listed += __popc(fire | close);
        kept[k] = fires ? A(0) : v[k];
      }
      if (writes) *fired = my_fire, *near = uint2{my_close, my_place};
      fired = held(fired + fired_step), near = held(near + words_step);
    }
  }
  RANVIER_UNROLL
  for (int k = 0; k < kOwn; ++k)
    if (n0 + k * kWarp < z.n) call.v_last[sample * z.n + n0 + k * kWarp] = v[k];
}

// kShare: 1, or all warps of a block.
template <class A, int kShare>
static __global__ void __launch_bounds__(kListThreads) lif_lists(LifForwardCall<A> call, LifChunk<A> chunk) {
  __shared__ int32_t shared_firing[kShare], shared_nearly[kShare];
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp % kShare;
  const int64_t words = words_of(z.n), samples = z.q * z.r;
  const int64_t number = (int64_t(blockIdx.x) * kListThreads + threadIdx.x) / (kWarp * kShare);
  if (number >= chunk.steps * samples) return;
  const int64_t step = number / samples, sample = number - step * samples;
  const int64_t list = sample_of(z, sample).first + (chunk.first + step) * z.r;
  const uint32_t* fired = call.fired + list * words;
  const uint2* near = chunk.words + number * words;
  const int64_t each = (words + kShare - 1) / kShare, begin = part * each;
  const int64_t end = begin + each < words ? begin + each : words;
  int32_t firing = 0, nearly = 0, before = 0, before_near = 0;
  for (int64_t word = begin + lane; word < end; word += kWarp)
    firing += __popc(fired[word]), nearly += __popc(near[word].x);
  firing = __reduce_add_sync(kAll, firing), nearly = __reduce_add_sync(kAll, nearly);
  if constexpr (kShare > 1) {
    if (lane == 0) shared_firing[part] = firing, shared_nearly[part] = nearly;
    __syncthreads();
    firing = nearly = 0;
    for (int k = 0; k < kShare; ++k) {
      if (k == part) before = firing, before_near = nearly;
      firing += shared_firing[k], nearly += shared_nearly[k];
    }
  }
  const int32_t slots = int32_t(z.s), spikes = firing < slots ? firing : slots;
  const int32_t room = slots - spikes, close = nearly < room ? nearly : room;
  before_near += spikes;

  int32_t* ids = call.ids + list * z.s;
  A* excess = call.excess + list * z.s;
  const int64_t stretches = (words + chunk.own - 1) / chunk.own, stretch = chunk.steps * chunk.own * kWarp;
  for (int64_t first = begin; first < end; first += kWarp) {
    const int64_t word = first + lane;
    const uint32_t fire = word < end ? fired[word] : 0;
    const uint2 others = word < end ? near[word] : uint2{0, 0};
    const uint32_t all = fire | others.x;
    const A* values = chunk.excess + ((sample * stretches + word / chunk.own) * stretch + others.y);
    A early[kEarlyValues];
    RANVIER_UNROLL
    for (int k = 0; k < kEarlyValues; ++k) early[k] = k < __popc(all) ? values[k] : A(0);
    uint32_t both;  // of 32 words: at most 1,024 of each kind
    const uint32_t place = sum_below(__popc(fire) | __popc(others.x) << 16, lane, both);
    int32_t at = before + int32_t(place & 0xffff), at_near = before_near + int32_t(place >> 16);
    uint32_t rest = all;
    const auto enter = [&](A value) {
      const int32_t slot = fire & rest & (0 - rest) ? at++ : at_near++;
      if (slot < slots) ids[slot] = int32_t(word * kWarp) + __ffs(rest) - 1, excess[slot] = value;
      rest &= rest - 1;
    };
    RANVIER_UNROLL
    for (int k = 0; k < kEarlyValues; ++k)
      if (rest) enter(early[k]);
    for (values += kEarlyValues; rest; ++values) enter(*values);
    before += int32_t(both & 0xffff), before_near += int32_t(both >> 16);
  }
  for (int32_t slot = spikes + close + part * kWarp + lane; slot < slots; slot += kShare * kWarp)
    ids[slot] = 0, excess[slot] = A(0);
  if (part == 0 && lane == 0) {
    call.n_spikes[list] = spikes, call.n_lost[list] = firing - spikes;
    call.n_near[list] = close, call.n_near_dropped[list] = nearly - close;
  }
}

}  // namespace ops
}  // namespace ranvier
