// What an FFI handler hands to the kernels of the grid scheme, on the CPU and on the GPU: sizes, switches, pointers.
//
// Samples, networks and parameter sets are those of lif_call.h: S = Q B samples, of which b belongs to set b / per_set.
// Everything is row-major and dense. Times are ms.
//
// What backward needs of forward, and why no more: the voltage of each step, which Eq. 16 compares with the threshold,
// and two slopes a spike (Eq. 18, 19). The current and the adaptation of each step are kept only for the derivatives of
// the neuron parameters.
#pragma once
#include <cstdint>

#include "positions.h"

namespace ranvier {

// Rows of `neuron` (P, 8, N); LIF reads the first three.
enum GridParameter {
  kGridTauMem,
  kGridTauSyn,
  kGridVTh,
  kGridA,
  kGridB,
  kGridTauW,
  kGridDeltaT,
  kGridZ0,
  kGridParameters
};

template <class R>
struct GridCall {
  int64_t n_samples;                       // S
  int64_t n_sets, per_set;                 // P, and S / P
  int64_t n_inputs, n, n_steps, n_events;  // M, N, T, E
  int64_t capacity;                        // C: spike records a sample
  int64_t n_slots;                         // delays are fewer steps than this
  R dt, limit, unit;  // limit: T dt, where the run ends; unit: step at which the surrogate counts as 1 (Eq. 16)
  bool recurrent, single, adex;
  bool keep;        // forward: write v_step and spike_state, which backward reads
  bool trace;       // forward: write v_trace; backward: read ct_trace
  bool parameters;  // forward: write i_step, and z_step of AdEx; backward: write d_neuron
  bool times;       // backward: write dt_event

  // inputs of both passes
  const R* time;           // (S, E) sorted, +inf: no event
  const int32_t* channel;  // (S, E)
  const R *w_in, *d_in;    // (P, M, N)
  const R *w_rec, *d_rec;  // (P, N, N)
  Positions<R> positions;  // in place of d_in and d_rec, which then are null
  const R* neuron;         // (P, 8, N) in the order of GridParameter

  // outputs of forward
  R *count, *first_offset, *v;         // (S, N); first_offset is 0 and carries a derivative
  R *v_step, *i_step, *z_step;         // (S, T, N) state at the end of each step
  R* v_trace;                          // (S, T, N) the same as v_step
  R* spike_g;                          // (S, C) 0, carries a derivative
  R* spike_state;                      // (S, C, 2) slope of v before the spike (kept off 0) and behind it [1/ms]
  int32_t *spike_step, *spike_neuron;  // (S, C) in the order of steps, then neurons
  int32_t* n_spikes;                   // (S,) records written; the rest of a record's arrays is anything
  int32_t* first_step;                 // (S, N) -1: silent
  int32_t* overflow;                   // (S,) spikes without a record

  // cotangents, backward
  const R *ct_count, *ct_first, *ct_v;  // (S, N)
  const R* ct_g;                        // (S, C)
  const R* ct_trace;                    // (S, T, N)

  // outputs of backward, fully written
  R* dt_event;         // (S, E)
  R *dw_in, *dd_in;    // (P, M, N)
  R *dw_rec, *dd_rec;  // (P, N, N); dd_in and dd_rec: not with positions
  R* d_neuron;         // (P, 8, N)
};

}  // namespace ranvier
