// GPU: copies from global to shared memory that go on while the thread does.
#pragma once
#include "host_device.h"

namespace ranvier {

template <class T>
__device__ __forceinline__ void copy(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16 || sizeof(T) == 32);
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (sizeof(T) <= 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(sizeof(T)) : "memory");
  } else {
    for (unsigned k = 0; k < sizeof(T); k += 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at + k),
                   "l"(reinterpret_cast<const char*>(from) + k)
                   : "memory");
  }
}
// What was asked for since the last call is a group.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kOpen groups of this thread are under way.
template <int kOpen>
__device__ __forceinline__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

}  // namespace ranvier
