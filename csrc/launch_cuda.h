// What the FFI handlers of all simulators on the GPU share: take scratch memory from XLA, launch on its stream.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "binding.h"

namespace ranvier {

// What a call without samples or without neurons returns: sums of nothing.
inline ffi::Error zeros(ffi::RemainingRets& results, cudaStream_t stream) {
  for (size_t k = 0; k < results.size(); ++k) {
    auto result = results.get<ffi::AnyBuffer>(k);
    if (!result.has_value()) return result.error();
    const size_t bytes = (*result)->size_bytes();
    const cudaError_t error = bytes ? cudaMemsetAsync((*result)->untyped_data(), 0, bytes, stream) : cudaSuccess;
    if (error != cudaSuccess) return ffi::Error::Internal(std::string("CUDA says ") + cudaGetErrorString(error));
  }
  return ffi::Error::Success();
}

// Calls `work` with as much scratch memory as `size` asks for. `most` neurons fit on a GPU; `name` is for errors.
template <class C>
ffi::Error launch(const char* name, const C& c, int64_t most, ffi::ScratchAllocator& memory, cudaStream_t stream,
                  ffi::RemainingRets& results, size_t (*size)(const C&),
                  cudaError_t (*work)(const C&, void*, cudaStream_t)) {
  if (c.n_samples == 0 || c.n == 0) return zeros(results, stream);
  if (c.n > most)
    return ffi::Error::InvalidArgument("simulate: got " + std::to_string(c.n) + " neurons on a GPU; the kernels take " +
                                       std::to_string(most) + "; use backend='reference'");
  const size_t bytes = size(c);
  const auto scratch = memory.Allocate(bytes, 16);
  if (!scratch.has_value())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "simulate: no " + std::to_string(bytes >> 20) + " MiB of GPU memory; use a smaller batch");
  const cudaError_t error = work(c, *scratch, stream);
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(name) + ": CUDA says " + cudaGetErrorString(error));
}

inline auto binding() {
  return signature(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>().Ctx<ffi::ScratchAllocator>());
}

}  // namespace ranvier
