// GPU: lists of the neurons that fire and of those that nearly do.
//
// A block a row. Its warps take stretches of neurons side by side, count both kinds, and after a sum over the warps go
// through their stretches again, which L1 or L2 still has: a vote of the warp gives each neuron its place.
#pragma once
#include "ops_call.h"
#include "warp_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kSpikeWarps = 32;

template <class A>
static __global__ void __launch_bounds__(kSpikeWarps* kWarp) spikes(SpikesCall<A> call) {
  constexpr int kTogether = 4;
  __shared__ int32_t firing[kSpikeWarps], nearly[kSpikeWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int64_t row = blockIdx.x;
  const A* state = call.state + row * call.n;
  const A *threshold = call.threshold + row * call.threshold_row, *near = call.near + row * call.near_row;
  const int64_t each = (call.n + warps * kWarp - 1) / (warps * kWarp) * kWarp;  // neurons a warp
  const int64_t begin = warp * each, end = begin + each < call.n ? begin + each : call.n;
  // Calls body(first of 32 neurons, which fire, which nearly do).
  const auto walk = [&](auto body) {
    for (int64_t k0 = begin; k0 < end; k0 += kTogether * kWarp) {
      A v[kTogether], high[kTogether], low[kTogether];
      RANVIER_UNROLL
      for (int u = 0; u < kTogether; ++u) {
        const int64_t k = k0 + u * kWarp + lane;
        const bool here = k < end;
        v[u] = here ? __ldg(state + k) : A(0);
        high[u] = here ? __ldg(threshold + k * call.threshold_neuron) : A(0);
        low[u] = here ? __ldg(near + k * call.near_neuron) : A(0);
      }
      RANVIER_UNROLL
      for (int u = 0; u < kTogether; ++u) {
        const int64_t k = k0 + u * kWarp;
        const bool here = k + lane < end, fires = here && v[u] > high[u];
        const bool nears = here && v[u] > low[u] && v[u] <= high[u];
        body(int32_t(k), __ballot_sync(kAll, fires), __ballot_sync(kAll, nears));
      }
    }
  };

  int32_t fired = 0, neared = 0;
  walk([&](int32_t, uint32_t fire, uint32_t close) { fired += __popc(fire), neared += __popc(close); });
  if (lane == 0) firing[warp] = fired, nearly[warp] = neared;
  __syncthreads();
  int32_t all_fired = 0, all_neared = 0, before = 0, before_near = 0;
  for (int k = 0; k < warps; ++k) {
    if (k == warp) before = all_fired, before_near = all_neared;
    all_fired += firing[k], all_neared += nearly[k];
  }
  const int32_t slots = int32_t(call.s), listed = all_fired < slots ? all_fired : slots;
  const int32_t room = slots - listed, close = all_neared < room ? all_neared : room;
  int32_t* ids = call.ids + row * call.s;
  before_near += listed;
  if ((fired && before < slots) || (neared && before_near < slots)) {
    walk([&](int32_t k, uint32_t fire, uint32_t close) {
      const uint32_t me = 1u << lane;
      const int32_t at = before + __popc(fire & (me - 1)), at_near = before_near + __popc(close & (me - 1));
      if ((fire & me) && at < slots) ids[at] = k + lane;
      if ((close & me) && at_near < slots) ids[at_near] = k + lane;
      before += __popc(fire), before_near += __popc(close);
    });
  }
  for (int32_t k = listed + close + threadIdx.x; k < slots; k += blockDim.x) ids[k] = 0;
  if (threadIdx.x == 0) {
    call.n_spikes[row] = listed, call.n_lost[row] = all_fired - listed;
    call.n_near[row] = close, call.n_near_dropped[row] = all_neared - close;
  }
}

}  // namespace ops
}  // namespace ranvier
