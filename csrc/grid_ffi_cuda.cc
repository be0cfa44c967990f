// XLA FFI handlers of the grid scheme on the GPU: fill a GridCall, take scratch memory from XLA, launch on its stream.
#include <string>

#include "grid_binding.h"
#include "grid_cuda.h"

namespace ranvier {
namespace {

template <class R>
ffi::Error launch(const GridCall<R>& c, ffi::ScratchAllocator& memory, cudaStream_t stream,
                  size_t (*size)(const GridCall<R>&), cudaError_t (*work)(const GridCall<R>&, void*, cudaStream_t)) {
  if (c.n > kGridMostNeurons)
    return ffi::Error::InvalidArgument("simulate: got " + std::to_string(c.n) + " neurons on a GPU; the kernels take " +
                                       std::to_string(kGridMostNeurons) + "; use backend='reference'");
  const size_t bytes = size(c);
  const auto scratch = memory.Allocate(bytes, 16);
  if (!scratch.has_value())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "simulate: no " + std::to_string(bytes >> 20) + " MiB of GPU memory; use a smaller batch");
  const cudaError_t error = work(c, *scratch, stream);
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("ranvier_grid: CUDA says ") + cudaGetErrorString(error));
}

template <class R>
ffi::Error forward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  GridCall<R> c{};
  if (auto e = bind_forward(c, attributes, arguments, results); e.failure()) return e;
  return launch<R>(c, memory, stream, grid_forward_scratch<R>, grid_forward<R>);
}

template <class R>
ffi::Error backward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  GridCall<R> c{};
  if (auto e = bind_backward(c, attributes, arguments, results); e.failure()) return e;
  return launch<R>(c, memory, stream, grid_backward_scratch<R>, grid_backward<R>);
}

auto binding() {
  return signature(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>().Ctx<ffi::ScratchAllocator>());
}

}  // namespace
}  // namespace ranvier

#define RANVIER_HANDLER(NAME, FUNCTION)                                                      \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* NAME(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, FUNCTION, ranvier::binding())
RANVIER_HANDLER(ranvier_grid_forward_f32, ranvier::forward<float>);
RANVIER_HANDLER(ranvier_grid_forward_f64, ranvier::forward<double>);
RANVIER_HANDLER(ranvier_grid_backward_f32, ranvier::backward<float>);
RANVIER_HANDLER(ranvier_grid_backward_f64, ranvier::backward<double>);
