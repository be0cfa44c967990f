// XLA FFI handlers of the LIF sequence on the GPU: fill a Call, take scratch memory from XLA, launch on its stream.
#include "launch_cuda.h"
#include "lif_binding.h"
#include "lif_cuda.h"

namespace ranvier {
namespace {

template <class R>
ffi::Error forward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Call<R> c{};
  if (auto e = bind_forward(c, attributes, arguments, results); e.failure()) return e;
  return launch("ranvier_lif", c, lif_most_neurons<R>(), memory, stream, results, lif_forward_scratch<R>,
                lif_forward<R>);
}

template <class R>
ffi::Error backward(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                    ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Call<R> c{};
  if (auto e = bind_backward(c, attributes, arguments, results); e.failure()) return e;
  return launch("ranvier_lif", c, lif_most_neurons<R>(), memory, stream, results, lif_backward_scratch<R>,
                lif_backward<R>);
}

}  // namespace
}  // namespace ranvier

RANVIER_HANDLER(ranvier_lif_forward_f32, ranvier::forward<float>);
RANVIER_HANDLER(ranvier_lif_forward_f64, ranvier::forward<double>);
RANVIER_HANDLER(ranvier_lif_backward_f32, ranvier::backward<float>);
RANVIER_HANDLER(ranvier_lif_backward_f64, ranvier::backward<double>);
