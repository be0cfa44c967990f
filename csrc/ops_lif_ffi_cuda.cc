// XLA FFI handlers of the LIF layer over time on the GPU: check the call, take scratch memory from XLA, launch on its
// stream.
#include <string>

#include "launch_cuda.h"
#include "ops_lif_binding.h"
#include "ops_lif_cuda.h"

namespace ranvier {
namespace {

// Calls `work` with as much scratch memory as `size` asks for.
template <class C>
ffi::Error launch(const C& c, ffi::ScratchAllocator& memory, cudaStream_t stream, size_t (*size)(const C&),
                  cudaError_t (*work)(const C&, void*, cudaStream_t)) {
  const size_t bytes = size(c);
  void* scratch = nullptr;
  if (bytes) {
    const auto taken = memory.Allocate(bytes, 16);
    if (!taken.has_value())
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        "lif_layer: no " + std::to_string(bytes >> 20) + " MiB of GPU memory; use a smaller batch");
    scratch = *taken;
  }
  const cudaError_t error = work(c, scratch, stream);
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("lif_layer: CUDA says ") + cudaGetErrorString(error));
}

template <class A, bool kSampled = false>
ffi::Error lif_forward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                       ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  LifForwardCall<A> c{};
  if (auto wrong = bind_lif_forward(c, attributes, arguments, results, kSampled); wrong.failure()) return wrong;
  return launch(c, memory, stream, ops_lif_forward_scratch<A>, ops_lif_forward<A>);
}

template <class A>
constexpr auto lif_forward_sampled = lif_forward<A, true>;

template <class A>
ffi::Error lif_backward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                        ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  LifBackwardCall<A> c{};
  if (auto wrong = bind_lif_backward(c, attributes, arguments, results); wrong.failure()) return wrong;
  return launch(c, memory, stream, ops_lif_backward_scratch<A>, ops_lif_backward<A>);
}

}  // namespace
}  // namespace ranvier

RANVIER_OPS_LIF_HANDLERS
