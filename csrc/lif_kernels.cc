// The sample kernels for one instruction set: compiled once for each (RANVIER_NS names it), picked when loaded.
#include "lif_kernels.h"

#include "lif_sequence.h"

namespace ranvier {
namespace RANVIER_NS {
namespace {

template <class R>
Problem<R> problem(const Call<R>& c) {
  Problem<R> p{c.n_inputs,
               c.n,
               c.n_steps,
               c.n_events,
               c.capacity,
               c.dt,
               c.recurrent,
               c.single,
               c.w_in,
               c.w_rec,
               c.d_in_step,
               c.d_rec_step,
               c.d_in_offset,
               c.d_rec_offset,
               c.tau_mem,
               c.tau_syn,
               c.v_th,
               {},
               {},
               {},
               {}};
  p.prepare();
  return p;
}

template <class R>
Sample<R> sample(const Call<R>& c, int64_t b) {
  const int64_t records = b * c.capacity;
  return {c.time + b * c.n_events,  c.channel + b * c.n_events, c.v_free + b * c.n_steps * c.n, c.spike_step + records,
          c.spike_neuron + records, c.spike_g + records,        c.spike_state + records * 5,    c.n_spikes + b,
          c.first_step + b * c.n};
}

template <class R>
void forward_sample(const Call<R>& c, int64_t b, R* scratch) {
  std::fill(scratch, scratch + c.n_steps * c.n * 4, R(0));
  const int64_t at = b * c.n;
  c.overflow[b] = forward(problem(c), sample(c, b), scratch, c.count + at, c.first_offset + at, c.v + at);
}

template <class R>
void backward_sample(const Call<R>& c, int64_t b, R* scratch, R* dw_in, R* dd_in, R* dw_rec, R* dd_rec) {
  const int64_t at = b * c.n;
  backward(problem(c), sample(c, b), c.ct_count + at, c.ct_first + at, c.ct_v + at, c.ct_g + b * c.capacity, c.unit,
           scratch, dw_in, dd_in, dw_rec, dd_rec, c.dt_event + b * c.n_events);
}

}  // namespace

template <class R>
Kernels<R> kernels() {
  return {forward_sample<R>, backward_sample<R>};
}

template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();

}  // namespace RANVIER_NS
}  // namespace ranvier
