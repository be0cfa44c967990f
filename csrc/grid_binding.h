// The signature of the handlers of the grid scheme, the same on the CPU and on the GPU (docs/design.md, "Compiled
// kernels"): attributes and buffers fill a GridCall.
#pragma once
#include "binding.h"
#include "grid_call.h"

namespace ranvier {

// Attributes, sizes and the inputs of both passes.
template <class R>
void bind_inputs(Reader& r, GridCall<R>& c) {
  const double dt = r.attribute<double>("dt");
  c.adex = r.attribute<bool>("adex");
  bind_layer(r, c);
  c.dt = static_cast<R>(dt), c.limit = static_cast<R>(static_cast<double>(c.n_steps) * dt);
  c.neuron = r.argument<R>("neuron", {c.n_sets, kGridParameters, c.n});
}

// A delay beside the run's end, or a row of arrivals, must fit into 32 bits.
template <class R>
ffi::Error check_sizes(const GridCall<R>& c) {
  const int64_t longest = std::min(c.n_slots, c.n_steps + 1), most = int64_t(1) << 31;
  if (c.n_slots < 1 || c.n_steps < 1 || c.n_steps >= most || c.n_events >= most || c.capacity >= most ||
      longest * c.n >= most || c.n_inputs >= most)
    return ffi::Error::InvalidArgument("simulate: got " + std::to_string(c.n) + " neurons with delays of up to " +
                                       std::to_string(longest) +
                                       " steps; their product, and steps, events and records, must be below 2^31 for "
                                       "the compiled kernels; use backend='reference'");
  return ffi::Error::Success();
}

template <class R>
ffi::Error bind_forward(GridCall<R>& c, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results) {
  Reader r("ranvier_grid", attributes, arguments, results);
  bind_inputs(r, c);
  const int64_t q = r.shape_of_argument<R>(0, 3, "time")[0], b = q > 0 ? c.n_samples / q : 0, n = c.n;
  const int64_t records = c.capacity = r.shape_of_result<R>(7, 3, "spike_g")[2];
  const int64_t kept = c.keep ? c.n_steps : 0, states = c.parameters ? c.n_steps : 0;
  c.count = r.result<R>("count", {q, b, n});
  c.first_offset = r.result<R>("first_offset", {q, b, n});
  c.v = r.result<R>("v", {q, b, n});
  c.v_step = r.result<R>("v_step", {q, b, kept, n});
  c.i_step = r.result<R>("i_step", {q, b, states, n});
  c.z_step = r.result<R>("z_step", {q, b, c.adex ? states : 0, n});
  c.v_trace = r.result<R>("trace", {q, b, c.trace ? c.n_steps : 0, n});
  c.spike_g = r.result<R>("spike_g", {q, b, records});
  c.spike_state = r.result<R>("spike_state", {q, b, c.keep ? records : 0, 2});
  c.spike_step = r.result<int32_t>("spike_step", {q, b, records});
  c.spike_neuron = r.result<int32_t>("spike_neuron", {q, b, records});
  c.n_spikes = r.result<int32_t>("n_spikes", {q, b});
  c.first_step = r.result<int32_t>("first_step", {q, b, n});
  c.overflow = r.result<int32_t>("overflow", {q, b});
  if (auto wrong = r.error(); wrong.failure()) return wrong;
  return check_sizes(c);
}

template <class R>
ffi::Error bind_backward(GridCall<R>& c, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results) {
  Reader r("ranvier_grid", attributes, arguments, results);
  bind_inputs(r, c);
  c.unit = static_cast<R>(r.attribute<double>("unit"));
  c.times = r.attribute<bool>("times"), c.keep = true;
  const int64_t q = r.shape_of_argument<R>(0, 3, "time")[0], b = q > 0 ? c.n_samples / q : 0, n = c.n;
  const int64_t records = c.capacity = r.shape_of_argument<R>(c.positions.dims ? 11 : 10, 4, "spike_state")[2];
  const int64_t states = c.parameters ? c.n_steps : 0;
  c.v_step = r.argument<R>("v_step", {q, b, c.n_steps, n});
  c.i_step = r.argument<R>("i_step", {q, b, states, n});
  c.z_step = r.argument<R>("z_step", {q, b, c.adex ? states : 0, n});
  c.spike_state = r.argument<R>("spike_state", {q, b, records, 2});
  c.spike_step = r.argument<int32_t>("spike_step", {q, b, records});
  c.spike_neuron = r.argument<int32_t>("spike_neuron", {q, b, records});
  c.n_spikes = r.argument<int32_t>("n_spikes", {q, b});
  c.first_step = r.argument<int32_t>("first_step", {q, b, n});
  bind_cotangents(r, c, q, b);
  bind_gradients(r, c, q, b);
  c.d_neuron = r.result<R>("d_neuron", {c.n_sets, c.parameters ? kGridParameters : 0, n});
  if (auto wrong = r.error(); wrong.failure()) return wrong;
  return check_sizes(c);
}

}  // namespace ranvier
