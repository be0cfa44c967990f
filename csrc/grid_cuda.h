// Launchers of the kernels of the grid scheme on the GPU (grid_cuda.cu), for the FFI handlers (grid_ffi_cuda.cc).
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "grid_call.h"

namespace ranvier {

// Neurons that one block can hold.
constexpr int64_t kGridMostNeurons = 8192;

// Bytes of device memory that a call needs beside its buffers.
template <class R>
size_t grid_forward_scratch(const GridCall<R>& call);
template <class R>
size_t grid_backward_scratch(const GridCall<R>& call);

// Put the work on `stream`; nothing waits. All pointers of `call` are on the device.
template <class R>
cudaError_t grid_forward(const GridCall<R>& call, void* scratch, cudaStream_t stream);
template <class R>
cudaError_t grid_backward(const GridCall<R>& call, void* scratch, cudaStream_t stream);

}  // namespace ranvier
