// GPU: lists as rows with a number for each neuron.
//
// A warp has a tile of a row in shared memory: zeros, then the entries that fall into it, then out with it, 16 bytes a
// thread. Of 32 entries those that name the same neuron are added one after another.
#pragma once
#include <cuda_bf16.h>

#include "ops_call.h"
#include "warp_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kDensifyThreads = 128, kDensifyBytes = 4096;  // bytes of a tile

__device__ __forceinline__ float rounded(float x, float*) { return x; }
__device__ __forceinline__ double rounded(double x, double*) { return x; }
__device__ __forceinline__ Bf16 rounded(float x, Bf16*) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }

// kWhole: rows start and end where 16 bytes do.
template <class A, class O, bool kWhole>
static __global__ void __launch_bounds__(kDensifyThreads) densify(DensifyCall<A, O> call) {
  constexpr int kTile = kDensifyBytes / sizeof(A), kFour = 16 / sizeof(A), kPer = kWhole ? 16 / sizeof(O) : 1;
  __shared__ __align__(16) A tiles[kDensifyThreads / kWarp][kTile];
  const OpsSizes& z = call.size;
  const int lane = threadIdx.x % kWarp;
  A* const tile = tiles[threadIdx.x / kWarp];
  const int64_t parts = (z.n + kTile - 1) / kTile;
  const int64_t warp = (int64_t(blockIdx.x) * kDensifyThreads + threadIdx.x) / kWarp, list = warp / parts;
  if (list >= z.q * z.r) return;
  const int64_t first = (warp - list * parts) * kTile;
  const int32_t here = int32_t(z.n - first < kTile ? z.n - first : kTile);
  const int64_t ids_end = first + here < call.ids_end ? first + here : call.ids_end;
  const int32_t slots = int32_t(z.s);
  // Entries are asked for before it is known how many count.
  int32_t next_id = -1;
  A next_value = 0;
  const auto load = [&](int32_t s) {
    next_id = -1;
    if (s < slots) next_id = __ldg(call.ids + list * z.s + s), next_value = __ldg(call.values + list * z.s + s);
  };
  load(lane);
  const int32_t given = __ldg(call.count + list), count = given < 0 ? 0 : given < slots ? given : slots;
  for (int32_t k = lane * kFour; k < here; k += kWarp * kFour) *reinterpret_cast<uint4*>(tile + k) = uint4{0, 0, 0, 0};
  __syncwarp();
  for (int32_t s0 = 0; s0 < count; s0 += kWarp) {
    const int64_t id = next_id;
    const A value = next_value;
    const bool named = s0 + lane < count && id >= first && id < ids_end;
    if (s0 + kWarp < count) load(s0 + kWarp + lane);
    const int32_t place = named ? int32_t(id - first) : -1 - lane;
    const uint32_t twins = __match_any_sync(kAll, place);
    const uint32_t turn = __popc(twins & ((1u << lane) - 1)), last = __reduce_max_sync(kAll, turn);
    for (uint32_t k = 0; k <= last; ++k) {
      if (named && turn == k) tile[place] += value;
      __syncwarp();
    }
  }
  O* const out = call.out + list * z.n + first;
  for (int32_t k = lane * kPer; k < here; k += kWarp * kPer) {
    if constexpr (kWhole) {
      union {
        uint4 all;
        O each[kPer];
      } part;
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) part.each[u] = rounded(tile[k + u], static_cast<O*>(nullptr));
      *reinterpret_cast<uint4*>(out + k) = part.all;
    } else {
      out[k] = rounded(tile[k], static_cast<O*>(nullptr));
    }
  }
}

}  // namespace ops
}  // namespace ranvier
