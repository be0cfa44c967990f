// GPU: kernels that are launched while the one before them on the stream still runs, and wait for it themselves. The
// launch is hidden; it takes as long as a small kernel does.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace ranvier {

// All kernels of a chain but the last: those behind may come.
__device__ __forceinline__ void let_next_come() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// All kernels of a chain but the first, before they read or write what the one before does.
__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Launches kKernel, which calls wait_for_last(). Code that was compiled for older GPUs does not wait, also where a
// newer one runs it: it is launched as any other.
template <auto kKernel, class... X>
cudaError_t launch_behind(dim3 grid, unsigned threads, cudaStream_t stream, const X&... x) {
  constexpr int kMostDevices = 64;
  static std::atomic<int8_t> waits[kMostDevices];  // 0: not asked yet, 1: no, 2: yes
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  std::atomic<int8_t>& known = waits[device % kMostDevices];
  if (known == 0) {
    cudaFuncAttributes compiled;
    if (const cudaError_t error = cudaFuncGetAttributes(&compiled, kKernel); error != cudaSuccess) return error;
    known = compiled.ptxVersion >= 90 ? 2 : 1;
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how{};
  how.gridDim = grid, how.blockDim = dim3(threads), how.stream = stream;
  how.attrs = &early, how.numAttrs = known == 2 ? 1 : 0;
  return cudaLaunchKernelEx(&how, kKernel, x...);
}

}  // namespace ranvier
