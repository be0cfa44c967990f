// Launchers of the kernels of the LIF layer over time on the GPU (ops_lif_cuda.cu), for its FFI handlers.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops_lif_call.h"

namespace ranvier {

// Bytes of device memory that a call needs beside its buffers: some tens of MiB, whatever T.
template <class A>
size_t ops_lif_forward_scratch(const LifForwardCall<A>& call);
template <class A>
size_t ops_lif_backward_scratch(const LifBackwardCall<A>& call);

// Put the work on `stream`; nothing waits. All pointers of `call` are on the device; Q and R may be 0.
template <class A>
cudaError_t ops_lif_forward(const LifForwardCall<A>& call, void* scratch, cudaStream_t stream);
template <class A>
cudaError_t ops_lif_backward(const LifBackwardCall<A>& call, void* scratch, cudaStream_t stream);

}  // namespace ranvier
