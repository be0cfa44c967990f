// XLA FFI handlers of the grid scheme on the GPU: fill a GridCall, take scratch memory from XLA, launch on its stream.
#include "grid_binding.h"
#include "grid_cuda.h"
#include "launch_cuda.h"

namespace ranvier {
namespace {

template <class R>
ffi::Error forward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  GridCall<R> c{};
  if (auto e = bind_forward(c, attributes, arguments, results); e.failure()) return e;
  return launch("ranvier_grid", c, kGridMostNeurons, memory, stream, results, grid_forward_scratch<R>, grid_forward<R>);
}

template <class R>
ffi::Error backward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  GridCall<R> c{};
  if (auto e = bind_backward(c, attributes, arguments, results); e.failure()) return e;
  return launch("ranvier_grid", c, kGridMostNeurons, memory, stream, results, grid_backward_scratch<R>,
                grid_backward<R>);
}

}  // namespace
}  // namespace ranvier

RANVIER_HANDLER(ranvier_grid_forward_f32, ranvier::forward<float>);
RANVIER_HANDLER(ranvier_grid_forward_f64, ranvier::forward<double>);
RANVIER_HANDLER(ranvier_grid_backward_f32, ranvier::backward<float>);
RANVIER_HANDLER(ranvier_grid_backward_f64, ranvier::backward<double>);
