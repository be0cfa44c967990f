// XLA FFI handlers of the LIF sequence on the GPU: fill a Call, take scratch memory from XLA, launch on its stream.
#include <string>

#include "lif_binding.h"
#include "lif_cuda.h"

namespace ranvier {
namespace {

template <class R>
ffi::Error launch(const Call<R>& c, ffi::ScratchAllocator& memory, cudaStream_t stream, size_t (*size)(const Call<R>&),
                  cudaError_t (*work)(const Call<R>&, void*, cudaStream_t)) {
  if (c.n > lif_most_neurons<R>())
    return ffi::Error::InvalidArgument("simulate: got " + std::to_string(c.n) + " neurons on a GPU; the kernels take " +
                                       std::to_string(lif_most_neurons<R>()) + "; use backend='reference'");
  const size_t bytes = size(c);
  const auto scratch = memory.Allocate(bytes, 16);
  if (!scratch.has_value())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "simulate: no " + std::to_string(bytes >> 20) + " MiB of GPU memory; use a smaller batch");
  const cudaError_t error = work(c, *scratch, stream);
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("ranvier_lif: CUDA says ") + cudaGetErrorString(error));
}

template <class R>
ffi::Error forward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Call<R> c{};
  if (auto e = bind_forward(c, attributes, arguments, results); e.failure()) return e;
  return launch<R>(c, memory, stream, lif_forward_scratch<R>, lif_forward<R>);
}

template <class R>
ffi::Error backward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Call<R> c{};
  if (auto e = bind_backward(c, attributes, arguments, results); e.failure()) return e;
  return launch<R>(c, memory, stream, lif_backward_scratch<R>, lif_backward<R>);
}

auto binding() {
  return signature(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>().Ctx<ffi::ScratchAllocator>());
}

}  // namespace
}  // namespace ranvier

#define RANVIER_HANDLER(NAME, FUNCTION)                                                      \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* NAME(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, FUNCTION, ranvier::binding())
RANVIER_HANDLER(ranvier_lif_forward_f32, ranvier::forward<float>);
RANVIER_HANDLER(ranvier_lif_forward_f64, ranvier::forward<double>);
RANVIER_HANDLER(ranvier_lif_backward_f32, ranvier::backward<float>);
RANVIER_HANDLER(ranvier_lif_backward_f64, ranvier::backward<double>);
