// What the FFI handlers (ranvier_cpu.cc) and the sample kernels (lif_kernels.cc) agree on: pointers and sizes.
#pragma once
#include <cstdint>

namespace ranvier {

template <class R>
struct Call {
  int64_t n_samples, n_inputs, n, n_steps, n_events, capacity;
  R dt, unit;
  bool recurrent, single;
  // inputs of both passes
  const R* time;
  const int32_t* channel;
  const R *w_in, *d_in_offset, *w_rec, *d_rec_offset, *tau_mem, *tau_syn, *v_th;
  const int32_t *d_in_step, *d_rec_step;
  // written by forward, read by backward
  R* v_free;
  int32_t *spike_step, *spike_neuron, *n_spikes, *first_step;
  R *spike_g, *spike_state;
  // outputs of forward
  R *count, *first_offset, *v;
  int32_t* overflow;
  // cotangents in and gradient of the event times out, backward
  const R *ct_count, *ct_first, *ct_v, *ct_g;
  R* dt_event;
};

template <class R>
struct Kernels {
  // scratch: T * N * 4 numbers, owned by the calling thread
  void (*forward)(const Call<R>&, int64_t sample, R* scratch);
  void (*backward)(const Call<R>&, int64_t sample, R* scratch, R* dw_in, R* dd_in, R* dw_rec, R* dd_rec);
};

#define RANVIER_DECLARE(NS)                          \
  namespace NS {                                     \
  template <class R>                                 \
  Kernels<R> kernels();                              \
  extern template Kernels<float> kernels<float>();   \
  extern template Kernels<double> kernels<double>(); \
  }
RANVIER_DECLARE(base)
RANVIER_DECLARE(v3)
RANVIER_DECLARE(v4)
#undef RANVIER_DECLARE

}  // namespace ranvier
