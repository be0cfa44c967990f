// The signature of the handlers of the LIF layer over time, the same on the CPU and on the GPU: buffers fill a call.
// There are no attributes; every size is read from a shape.
#pragma once
#include "binding.h"
#include "ops_lif_call.h"

namespace ranvier {

// `sampled`: with windows.
template <class A>
ffi::Error bind_lif_forward(LifForwardCall<A>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                            ffi::RemainingRets results, bool sampled = false) {
  Reader r("ranvier_ops_lif_forward", attributes, arguments, results);
  const auto currents = r.shape_of_argument<A>(0, 4, "currents");
  const auto w_rec = r.shape_of_argument<A>(1, 3, "w_rec");
  const auto list = r.shape_of_result<int32_t>(0, 4, "ids");
  LifLoopSizes& z = call.size = {currents[0], currents[1], currents[2], currents[3], list[3], w_rec[1] > 0};
  call.currents = r.argument<A>("currents", {z.q, z.t, z.r, z.n});
  call.w_rec = r.argument<A>("w_rec", {z.q, z.recurrent ? z.n : 0, z.n});
  call.parameters = r.argument<A>("parameters", {z.q, kLifRows, z.n});
  call.v0 = r.argument<A>("v0", {z.q, z.r, z.n});
  call.values0 = r.argument<A>("values0", {z.q, z.r, z.s});
  call.ids0 = r.argument<int32_t>("ids0", {z.q, z.r, z.s});
  call.n_spikes0 = r.argument<int32_t>("n_spikes0", {z.q, z.r});
  call.window = sampled ? r.argument<int32_t>("window", {z.q, z.t, z.r, 2}) : nullptr;
  call.ids = r.result<int32_t>("ids", {z.q, z.t, z.r, z.s});
  call.excess = r.result<A>("excess", {z.q, z.t, z.r, z.s});
  call.n_spikes = r.result<int32_t>("n_spikes", {z.q, z.t, z.r});
  call.n_near = r.result<int32_t>("n_near", {z.q, z.t, z.r});
  call.n_lost = r.result<int32_t>("n_lost", {z.q, z.t, z.r});
  call.n_near_dropped = r.result<int32_t>("n_near_dropped", {z.q, z.t, z.r});
  call.fired = r.result<uint32_t>("fired", {z.q, z.t, z.r, words_of(z.n)});
  call.v_last = r.result<A>("v_last", {z.q, z.r, z.n});
  return r.error();
}

template <class A>
ffi::Error bind_lif_backward(LifBackwardCall<A>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                             ffi::RemainingRets results) {
  Reader r("ranvier_ops_lif_backward", attributes, arguments, results);
  const auto list = r.shape_of_argument<int32_t>(0, 4, "ids");
  const auto w_rec = r.shape_of_argument<A>(4, 3, "w_rec");
  LifLoopSizes& z = call.size = {list[0], list[1], list[2], w_rec[2], list[3], w_rec[1] > 0};
  call.ids = r.argument<int32_t>("ids", {z.q, z.t, z.r, z.s});
  call.n_listed = r.argument<int32_t>("n_listed", {z.q, z.t, z.r});
  call.factor = r.argument<A>("factor", {z.q, z.t, z.r, z.s});
  call.fired = r.argument<uint32_t>("fired", {z.q, z.t, z.r, words_of(z.n)});
  call.w_rec = r.argument<A>("w_rec", {z.q, z.recurrent ? z.n : 0, z.n});
  call.parameters = r.argument<A>("parameters", {z.q, kLifRows, z.n});
  call.v0 = r.argument<A>("v0", {z.q, z.r, z.n});
  call.ids0 = r.argument<int32_t>("ids0", {z.q, z.r, z.s});
  call.n_listed0 = r.argument<int32_t>("n_listed0", {z.q, z.r});
  call.ct_excess = r.argument<A>("ct_excess", {z.q, z.t, z.r, z.s});
  call.ct_v_last = r.argument<A>("ct_v_last", {z.q, z.r, z.n});
  call.d_currents = r.result<A>("d_currents", {z.q, z.t, z.r, z.n});
  call.d_excess = r.result<A>("d_excess", {z.q, z.t, z.r, z.s});
  call.d_v0 = r.result<A>("d_v0", {z.q, z.r, z.n});
  call.d_values0 = r.result<A>("d_values0", {z.q, z.r, z.s});
  return r.error();
}

}  // namespace ranvier

// The handlers of a library that has lif_forward, lif_forward_sampled and lif_backward in `ranvier`.
#define RANVIER_OPS_LIF_HANDLERS                                                              \
  RANVIER_HANDLER(ranvier_ops_lif_forward_f32, ranvier::lif_forward<float>);                  \
  RANVIER_HANDLER(ranvier_ops_lif_forward_f64, ranvier::lif_forward<double>);                 \
  RANVIER_HANDLER(ranvier_ops_lif_forward_sampled_f32, ranvier::lif_forward_sampled<float>);  \
  RANVIER_HANDLER(ranvier_ops_lif_forward_sampled_f64, ranvier::lif_forward_sampled<double>); \
  RANVIER_HANDLER(ranvier_ops_lif_backward_f32, ranvier::lif_backward<float>);                \
  RANVIER_HANDLER(ranvier_ops_lif_backward_f64, ranvier::lif_backward<double>);
