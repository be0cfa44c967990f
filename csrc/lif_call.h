// What an FFI handler hands to the LIF kernels, on the CPU and on the GPU: sizes, switches and pointers.
//
// A call simulates Q networks on B samples each. Weights, delays and neuron parameters come once (P = 1) or once a
// network (P = Q); to a kernel there are S = Q B samples, and sample b belongs to parameter set b / per_set. Everything
// is row-major and dense. Times are ms.
#pragma once
#include <cstdint>

#include "positions.h"

namespace ranvier {

template <class R>
struct Call {
  int64_t n_samples;                       // S
  int64_t n_sets, per_set;                 // P, and S / P
  int64_t n_inputs, n, n_steps, n_events;  // M, N, T, E
  int64_t capacity;                        // C: spike records a sample
  int64_t n_slots;                         // an arrival lies fewer steps than this behind its spike
  R dt, unit;                              // unit: step at which the surrogate counts as 1 (Eq. 16)
  bool recurrent, single;
  bool keep;        // forward: write v_free and spike_state, which backward reads
  bool trace;       // forward: write v_trace; backward: read ct_trace
  bool parameters;  // forward: write i_free; backward: write the derivatives of tau_mem, tau_syn and v_th
  bool times;       // backward: write dt_event

  // inputs of both passes
  const R* time;                      // (S, E) sorted, +inf: no event
  const int32_t* channel;             // (S, E)
  const R *w_in, *d_in;               // (P, M, N)
  const R *w_rec, *d_rec;             // (P, N, N)
  Positions<R> positions;             // in place of d_in and d_rec, which then are null
  const R *tau_mem, *tau_syn, *v_th;  // (P, N)

  // outputs of forward
  R *count, *first_offset, *v;         // (S, N)
  int32_t* first_step;                 // (S, N) -1: silent
  int32_t* overflow;                   // (S,)
  int32_t* n_spikes;                   // (S,) records written
  int32_t *spike_step, *spike_neuron;  // (S, C) in the order of steps, then neurons, then times
  R* spike_g;                          // (S, C) offset in the step
  R* spike_state;                      // (S, C, 5) v, i at the start of the step, and its bucket JI, JV, JQ
  R *v_free, *i_free;                  // (S, T, N) state at the end of each step without the resets of that step
  R* v_trace;                          // (S, T, N) voltage at the end of each step

  // cotangents, backward
  const R *ct_count, *ct_first, *ct_v;  // (S, N)
  const R* ct_g;                        // (S, C)
  const R* ct_trace;                    // (S, T, N)

  // outputs of backward, fully written
  R* dt_event;                        // (S, E)
  R *dw_in, *dd_in;                   // (P, M, N)
  R *dw_rec, *dd_rec;                 // (P, N, N); dd_in and dd_rec: not with positions
  R *d_tau_mem, *d_tau_syn, *d_v_th;  // (P, N)
};

}  // namespace ranvier
