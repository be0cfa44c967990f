// Warps on the GPU: their size, and a sum over the lanes of one.
#pragma once
#include "host_device.h"

namespace ranvier {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// All lanes get the sum, formed in one order.
template <class R>
__device__ __forceinline__ R warp_sum(R x) {
  RANVIER_UNROLL
  for (int k = kWarp / 2; k > 0; k /= 2) x += __shfl_xor_sync(kAll, x, k);
  return x;
}

}  // namespace ranvier
