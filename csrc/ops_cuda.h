// Launchers of the kernels of ranvier.ops on the GPU (ops_cuda.cu, ops_densify_cuda.cu, ops_dense_cuda.cu), for the FFI
// handlers (ops_ffi_cuda.cc).
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops_call.h"

namespace ranvier {

// Bytes of device memory that `scatter` needs beside its buffers; turned: for a result that is (P, C, N).
template <class A>
size_t ops_scatter_scratch(const ScatterCall<A>& call, bool turned);

// Slots of the lists of a matrix that `scatter` can number.
constexpr int64_t kOpsMostSlots = (int64_t(1) << 31) - 1;

// Put the work on `stream`; nothing waits. All pointers of `call` are on the device.
template <class A, class M>
cudaError_t ops_gather(const GatherCall<A, M>& call, cudaStream_t stream);
template <class A>
cudaError_t ops_scatter(const ScatterCall<A>& call, bool turned, void* scratch, cudaStream_t stream);
template <class A, class M>
cudaError_t ops_dots(const DotsCall<A, M>& call, cudaStream_t stream);
// The same with a matrix that is (P, C, N), and what they need beside the buffers.
template <class A, class M>
size_t ops_gather_turned_scratch(const GatherCall<A, M>& call);
template <class A, class M>
size_t ops_dots_turned_scratch(const DotsCall<A, M>& call);
template <class A, class M>
cudaError_t ops_gather_turned(const GatherCall<A, M>& call, void* scratch, cudaStream_t stream);
template <class A, class M>
cudaError_t ops_dots_turned(const DotsCall<A, M>& call, void* scratch, cudaStream_t stream);
template <class A>
cudaError_t ops_spikes(const SpikesCall<A>& call, cudaStream_t stream);
template <class A, class O>
cudaError_t ops_densify(const DensifyCall<A, O>& call, cudaStream_t stream);

// By dense products (ops_dense_cuda.cu), of calls with no size of 0; whether there is a cuBLAS for them. Scratch memory
// begins at 256 bytes, as cuBLAS wants it.
bool ops_dense_works();
size_t ops_dense_gather_scratch(const DenseCall& call);
size_t ops_dense_scatter_scratch(const DenseCall& call);
size_t ops_dense_dots_scratch(const DenseCall& call);
cudaError_t ops_dense_gather(const DenseCall& call, void* scratch, cudaStream_t stream);
cudaError_t ops_dense_scatter(const DenseCall& call, void* scratch, cudaStream_t stream);
cudaError_t ops_dense_dots(const DenseCall& call, void* scratch, cudaStream_t stream);

}  // namespace ranvier
