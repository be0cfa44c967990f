// Launchers of the LIF kernels on the GPU (lif_cuda.cu), for the FFI handlers (lif_ffi_cuda.cc).
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "lif_call.h"

namespace ranvier {

// Bytes of device memory that a call needs beside its buffers.
template <class R>
size_t lif_forward_scratch(const Call<R>& call);
template <class R>
size_t lif_backward_scratch(const Call<R>& call);

// Put the work on `stream`; nothing waits. All pointers of `call` are on the device.
template <class R>
cudaError_t lif_forward(const Call<R>& call, void* scratch, cudaStream_t stream);
template <class R>
cudaError_t lif_backward(const Call<R>& call, void* scratch, cudaStream_t stream);

// Neurons that one block can hold.
template <class R>
int64_t lif_most_neurons();

}  // namespace ranvier
