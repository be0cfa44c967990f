// XLA FFI handlers of ranvier.ops on the GPU: check the call, take scratch memory from XLA, launch on its stream.
#include <string>

#include "launch_cuda.h"
#include "ops_binding.h"
#include "ops_cuda.h"

namespace ranvier {
namespace {

ffi::Error said(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("ranvier_ops_") + name + ": CUDA says " + cudaGetErrorString(error));
}

template <class A, class M>
ffi::Error gather(cudaStream_t stream, ffi::ScratchAllocator, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  GatherCall<A, M> c{};
  if (auto wrong = bind_gather(c, attributes, arguments, results); wrong.failure()) return wrong;
  return said("gather", ops_gather(c, stream));
}

// Calls work(scratch) with `bytes` of it.
template <class Work>
ffi::Error with_scratch(const char* name, ffi::ScratchAllocator& memory, size_t bytes, Work&& work) {
  const auto scratch = memory.Allocate(bytes ? bytes : 1, 16);
  if (!scratch.has_value())
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "spike_matmul: no " + std::to_string(bytes >> 20) +
                                                              " MiB of GPU memory; use a smaller batch or capacity");
  return said(name, work(*scratch));
}

template <class A, class M>
ffi::Error gather_turned(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                         ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  GatherCall<A, M> c{};
  if (auto wrong = bind_gather(c, attributes, arguments, results, true); wrong.failure()) return wrong;
  return with_scratch("gather_turned", memory, ops_gather_turned_scratch(c),
                      [&](void* scratch) { return ops_gather_turned(c, scratch, stream); });
}

template <class A, class M>
ffi::Error dots_turned(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                       ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  DotsCall<A, M> c{};
  if (auto wrong = bind_dots(c, attributes, arguments, results, true); wrong.failure()) return wrong;
  return with_scratch("dots_turned", memory, ops_dots_turned_scratch(c),
                      [&](void* scratch) { return ops_dots_turned(c, scratch, stream); });
}

template <class A>
ffi::Error scatter_of(bool turned, cudaStream_t stream, ffi::ScratchAllocator& memory, ffi::Dictionary attributes,
                      ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  ScatterCall<A> c{};
  if (auto wrong = bind_scatter(c, attributes, arguments, results, turned); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  const int64_t slots = (z.p == 1 ? z.q * z.r : z.r) * z.s;
  if (slots > kOpsMostSlots)
    return ffi::Error::InvalidArgument("spike_matmul: got " + std::to_string(slots) +
                                       " slots for one matrix; its derivative on a GPU takes " +
                                       std::to_string(kOpsMostSlots) + "; use a smaller batch or capacity");
  return with_scratch("scatter", memory, ops_scatter_scratch(c, turned),
                      [&](void* scratch) { return ops_scatter(c, turned, scratch, stream); });
}

template <class A>
ffi::Error scatter(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return scatter_of<A>(false, stream, memory, attributes, arguments, results);
}

template <class A>
ffi::Error scatter_turned(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                          ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  return scatter_of<A>(true, stream, memory, attributes, arguments, results);
}

template <class A, class M>
ffi::Error dots(cudaStream_t stream, ffi::ScratchAllocator, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                ffi::RemainingRets results) {
  DotsCall<A, M> c{};
  if (auto wrong = bind_dots(c, attributes, arguments, results); wrong.failure()) return wrong;
  return said("dots", ops_dots(c, stream));
}

// A dense product of a call that is bound, or was `wrong`.
ffi::Error dense(const char* name, const DenseCall& call, const ffi::Error& wrong, ffi::ScratchAllocator& memory,
                 ffi::RemainingRets& results, cudaStream_t stream, size_t (*size)(const DenseCall&),
                 cudaError_t (*work)(const DenseCall&, void*, cudaStream_t)) {
  if (wrong.failure()) return wrong;
  const OpsSizes& z = call.size;
  if (std::min({z.q, z.r, z.s, z.n, z.c}) == 0) return zeros(results, stream);
  if (!ops_dense_works())
    return ffi::Error::Internal(
        "spike_matmul: found no libcublas.so.13 or .12; a dense product needs it; install "
        "jax[cuda13], or use mode='sparse'");
  return with_scratch(name, memory, size(call), [&](void* scratch) { return work(call, scratch, stream); });
}

template <class M>
ffi::Error dense_gather(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                        ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  DenseCall c{};
  const auto wrong = bind_dense_gather<M>(c, attributes, arguments, results);
  return dense("dense_gather", c, wrong, memory, results, stream, ops_dense_gather_scratch, ops_dense_gather);
}

ffi::Error dense_scatter(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                         ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  DenseCall c{};
  const auto wrong = bind_dense_scatter(c, attributes, arguments, results);
  return dense("dense_scatter", c, wrong, memory, results, stream, ops_dense_scatter_scratch, ops_dense_scatter);
}

template <class M>
ffi::Error dense_dots(cudaStream_t stream, ffi::ScratchAllocator memory, ffi::Dictionary attributes,
                      ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  DenseCall c{};
  const auto wrong = bind_dense_dots<M>(c, attributes, arguments, results);
  return dense("dense_dots", c, wrong, memory, results, stream, ops_dense_dots_scratch, ops_dense_dots);
}

template <class A, class O>
ffi::Error densify(cudaStream_t stream, ffi::ScratchAllocator, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  DensifyCall<A, O> c{};
  if (auto wrong = bind_densify(c, attributes, arguments, results); wrong.failure()) return wrong;
  return said("densify", ops_densify(c, stream));
}

template <class A>
ffi::Error spikes(cudaStream_t stream, ffi::ScratchAllocator, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  SpikesCall<A> c{};
  if (auto wrong = bind_spikes(c, attributes, arguments, results); wrong.failure()) return wrong;
  return said("spikes", ops_spikes(c, stream));
}

}  // namespace
}  // namespace ranvier

RANVIER_OPS_HANDLERS
RANVIER_TURNED_HANDLERS
RANVIER_DENSIFY_HANDLERS
RANVIER_DENSE_HANDLERS
