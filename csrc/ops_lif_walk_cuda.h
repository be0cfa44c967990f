// GPU: a LIF layer over time without recurrent weights, where no neuron knows of another: memory is the limit.
//
// A chunk of steps at a time, two kernels. `lif_walk`: a warp has 32 neurons of a sample, each lane one, and goes
// through the steps with the currents of kAhead of them under way; the votes of a step are words of who fires and who
// nearly does, and what the listed exceed the threshold by goes side by side into the warp's stretch of scratch memory.
// `lif_lists`: a warp has a list, adds up the words, and puts ids and excesses in their slots. Between the two only
// words and what is listed passes, and L2 has most of it: the chunk bounds the room for it, which is for all neurons.
#pragma once
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kWalkThreads = 128, kListThreads = 256;

// Steps first ... first + steps - 1, and what the walk leaves for the lists.
template <class A>
struct LifChunk {
  int64_t first, steps;
  uint2* words;  // (steps, Q * R, W): who nearly fires; where in the warp's stretch its excesses of this step begin
  A* excess;     // (Q * R, W, steps * 32)
};

template <class A, int kAhead>
static __global__ void __launch_bounds__(kWalkThreads) lif_walk(LifForwardCall<A> call, LifChunk<A> chunk) {
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp;
  const int64_t words = words_of(z.n), samples = z.q * z.r;
  const int64_t warp = (int64_t(blockIdx.x) * kWalkThreads + threadIdx.x) / kWarp;
  if (warp >= samples * words) return;
  const int64_t sample = warp / words, word = warp - sample * words, n = word * kWarp + lane;
  const bool here = n < z.n;
  const Sample at = sample_of(z, sample);
  const int64_t list = at.first + chunk.first * z.r;
  Neuron<A> neuron;
  neuron.load(call.parameters + at.group * kLifRows * z.n, z.n, n);
  A v = here ? (chunk.first ? call.v_last : call.v0)[sample * z.n + n] : A(0);
  A kept = v > neuron.threshold ? A(0) : v;

  const A* current = call.currents + list * z.n + (here ? n : 0);
  const int64_t current_step = z.r * z.n, fired_step = z.r * words, words_step = samples * words;
  uint32_t* fired = call.fired + list * words + word;
  uint2* near = chunk.words + warp;
  A* const excess = chunk.excess + warp * chunk.steps * kWarp;
  const uint32_t below = (1u << lane) - 1;
  uint32_t listed = 0;
  const auto step = [&](A input) {
    v = neuron.decay * kept + neuron.scale * input;
    const bool fires = v > neuron.threshold, nears = v > neuron.near && v <= neuron.threshold;
    const uint32_t fire = __ballot_sync(kAll, fires), close = __ballot_sync(kAll, nears);
    if (fires || nears) excess[listed + __popc((fire | close) & below)] = v - neuron.threshold;
    if (lane == 0) *fired = fire, *near = uint2{close, listed};
    fired = held(fired + fired_step), near = held(near + words_step);
    listed += __popc(fire | close);
    kept = fires ? A(0) : v;
  };

  const int32_t steps = int32_t(chunk.steps);
  A next[kAhead];
  const auto load = [&](int32_t t) {
    RANVIER_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      next[k] = here && t + k < steps ? __ldcs(current) : A(0);
      current = held(current + current_step);
    }
  };
  load(0);
  int32_t t = 0;
  for (; t + kAhead <= steps; t += kAhead) {
    A now[kAhead];
    RANVIER_UNROLL
    for (int k = 0; k < kAhead; ++k) now[k] = next[k];
    load(t + kAhead);
    RANVIER_UNROLL
    for (int k = 0; k < kAhead; ++k) step(now[k]);
  }
  RANVIER_UNROLL
  for (int k = 0; k < kAhead; ++k)
    if (t + k < steps) step(next[k]);
  if (here) call.v_last[sample * z.n + n] = v;
}

template <class A>
static __global__ void __launch_bounds__(kListThreads) lif_lists(LifForwardCall<A> call, LifChunk<A> chunk) {
  const LifLoopSizes& z = call.size;
  const int lane = threadIdx.x % kWarp;
  const int64_t words = words_of(z.n), samples = z.q * z.r;
  const int64_t number = (int64_t(blockIdx.x) * kListThreads + threadIdx.x) / kWarp;
  if (number >= chunk.steps * samples) return;
  const int64_t step = number / samples, sample = number - step * samples;
  const int64_t list = sample_of(z, sample).first + (chunk.first + step) * z.r;
  const uint32_t* fired = call.fired + list * words;
  const uint2* near = chunk.words + number * words;
  int32_t firing = 0, nearly = 0;
  for (int64_t word = lane; word < words; word += kWarp) firing += __popc(fired[word]), nearly += __popc(near[word].x);
  firing = __reduce_add_sync(kAll, firing), nearly = __reduce_add_sync(kAll, nearly);
  const int32_t slots = int32_t(z.s), spikes = firing < slots ? firing : slots;
  const int32_t room = slots - spikes, close = nearly < room ? nearly : room;

  int32_t* ids = call.ids + list * z.s;
  A* excess = call.excess + list * z.s;
  uint32_t before = 0, before_near = uint32_t(spikes);
  for (int64_t first = 0; first < words; first += kWarp) {
    const int64_t word = first + lane;
    const uint32_t fire = word < words ? fired[word] : 0;
    const uint2 others = word < words ? near[word] : uint2{0, 0};
    uint32_t both;  // of 32 words: at most 1,024 of each kind
    const uint32_t place = sum_below(__popc(fire) | __popc(others.x) << 16, lane, both);
    uint32_t at = before + (place & 0xffff), at_near = before_near + (place >> 16);
    const A* values = chunk.excess + ((sample * words + word) * chunk.steps * kWarp + others.y);
    for (uint32_t rest = fire | others.x; rest; rest &= rest - 1, ++values) {
      const uint32_t bit = rest & (0 - rest);
      const uint32_t slot = fire & bit ? at++ : at_near++;
      if (slot < uint32_t(slots)) ids[slot] = int32_t(word * kWarp) + __ffs(rest) - 1, excess[slot] = *values;
    }
    before += both & 0xffff, before_near += both >> 16;
  }
  for (int32_t slot = spikes + close + lane; slot < slots; slot += kWarp) ids[slot] = 0, excess[slot] = A(0);
  if (lane == 0) {
    call.n_spikes[list] = spikes, call.n_lost[list] = firing - spikes;
    call.n_near[list] = close, call.n_near_dropped[list] = nearly - close;
  }
}

}  // namespace ops
}  // namespace ranvier
