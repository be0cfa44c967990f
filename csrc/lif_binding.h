// The signature of the LIF handlers, the same on the CPU and on the GPU: attributes and buffers fill a Call.
//
// Buffers come in the order of docs/design.md ("Compiled kernels"). Each is named once here, with the shape it must
// have; what does not fit becomes one line of error.
#pragma once
#include "binding.h"
#include "lif_call.h"

namespace ranvier {

// Attributes, sizes and the inputs of both passes.
template <class R>
void bind_inputs(Reader& r, Call<R>& c) {
  c.dt = static_cast<R>(r.attribute<double>("dt"));
  bind_layer(r, c);
  c.tau_mem = r.argument<R>("tau_mem", {c.n_sets, c.n});
  c.tau_syn = r.argument<R>("tau_syn", {c.n_sets, c.n});
  c.v_th = r.argument<R>("v_th", {c.n_sets, c.n});
}

template <class R>
ffi::Error bind_forward(Call<R>& c, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results) {
  Reader r("ranvier_lif", attributes, arguments, results);
  bind_inputs(r, c);
  const int64_t q = r.shape_of_argument<R>(0, 3, "time")[0], b = q > 0 ? c.n_samples / q : 0, n = c.n;
  const int64_t records = c.capacity = r.shape_of_result<R>(6, 3, "spike_g")[2];
  const int64_t kept = c.keep ? c.n_steps : 0, currents = c.parameters ? c.n_steps : 0;
  c.count = r.result<R>("count", {q, b, n});
  c.first_offset = r.result<R>("first_offset", {q, b, n});
  c.v = r.result<R>("v", {q, b, n});
  c.v_free = r.result<R>("v_free", {q, b, kept, n});
  c.i_free = r.result<R>("i_free", {q, b, currents, n});
  c.v_trace = r.result<R>("trace", {q, b, c.trace ? c.n_steps : 0, n});
  c.spike_g = r.result<R>("spike_g", {q, b, records});
  c.spike_state = r.result<R>("spike_state", {q, b, c.keep ? records : 0, 5});
  c.spike_step = r.result<int32_t>("spike_step", {q, b, records});
  c.spike_neuron = r.result<int32_t>("spike_neuron", {q, b, records});
  c.n_spikes = r.result<int32_t>("n_spikes", {q, b});
  c.first_step = r.result<int32_t>("first_step", {q, b, n});
  c.overflow = r.result<int32_t>("overflow", {q, b});
  return r.error();
}

template <class R>
ffi::Error bind_backward(Call<R>& c, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results) {
  Reader r("ranvier_lif", attributes, arguments, results);
  bind_inputs(r, c);
  c.unit = static_cast<R>(r.attribute<double>("unit"));
  c.times = r.attribute<bool>("times"), c.keep = true;
  const int64_t q = r.shape_of_argument<R>(0, 3, "time")[0], b = q > 0 ? c.n_samples / q : 0, n = c.n;
  const int64_t records = c.capacity = r.shape_of_argument<R>(c.positions.dims ? 12 : 11, 3, "spike_g")[2];
  c.v_free = r.argument<R>("v_free", {q, b, c.n_steps, n});
  c.i_free = r.argument<R>("i_free", {q, b, c.parameters ? c.n_steps : 0, n});
  c.spike_g = r.argument<R>("spike_g", {q, b, records});
  c.spike_state = r.argument<R>("spike_state", {q, b, records, 5});
  c.spike_step = r.argument<int32_t>("spike_step", {q, b, records});
  c.spike_neuron = r.argument<int32_t>("spike_neuron", {q, b, records});
  c.n_spikes = r.argument<int32_t>("n_spikes", {q, b});
  c.first_step = r.argument<int32_t>("first_step", {q, b, n});
  bind_cotangents(r, c, q, b);
  bind_gradients(r, c, q, b);
  const int64_t p = c.n_sets, neurons = c.parameters ? n : 0;
  c.d_tau_mem = r.result<R>("d_tau_mem", {p, neurons});
  c.d_tau_syn = r.result<R>("d_tau_syn", {p, neurons});
  c.d_v_th = r.result<R>("d_v_th", {p, neurons});
  return r.error();
}

}  // namespace ranvier
