// GPU launcher of `densify` of ranvier.ops; the kernel is in ops_densify_cuda.h.
#include "ops_cuda.h"
#include "ops_densify_cuda.h"

namespace ranvier {

template <class A, class O>
cudaError_t ops_densify(const DensifyCall<A, O>& call, cudaStream_t stream) {
  using namespace ops;
  const OpsSizes& z = call.size;
  constexpr int64_t kTile = kDensifyBytes / sizeof(A), kWarps = kDensifyThreads / kWarp;
  const int64_t tiles = z.q * z.r * ((z.n + kTile - 1) / kTile), blocks = (tiles + kWarps - 1) / kWarps;
  if (blocks == 0) return cudaSuccess;
  if (blocks >= int64_t(1) << 31) return cudaErrorInvalidConfiguration;
  if (z.n * sizeof(O) % 16 == 0 && reinterpret_cast<uintptr_t>(call.out) % 16 == 0)
    densify<A, O, true><<<static_cast<unsigned>(blocks), kDensifyThreads, 0, stream>>>(call);
  else
    densify<A, O, false><<<static_cast<unsigned>(blocks), kDensifyThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

template cudaError_t ops_densify(const DensifyCall<float, float>&, cudaStream_t);
template cudaError_t ops_densify(const DensifyCall<double, double>&, cudaStream_t);
template cudaError_t ops_densify(const DensifyCall<float, Bf16>&, cudaStream_t);

}  // namespace ranvier
