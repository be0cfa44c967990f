// What an FFI handler of the LIF layer over time hands to its kernel, on the CPU and on the GPU: sizes and pointers.
//
// A call has Q groups of R samples, each of N neurons over T steps, and, per group, parameters and (`recurrent`) a
// matrix of recurrent weights. A list has S slots; `docs/equations.md`, 36 and 37, say what is computed. Everything is
// row-major and dense; T and N are at least 1. Sums have one order, whatever the number of threads.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace ranvier {

struct LifLoopSizes {
  int64_t q, t, r, n;  // Q, T, R, N
  int64_t s;           // S
  bool recurrent;
};

// Neurons of a word of `fired`.
constexpr int64_t kWord = 32;
inline namespace RANVIER_TARGET {
RANVIER_HD int64_t words_of(int64_t n) { return (n + kWord - 1) / kWord; }
}  // namespace RANVIER_TARGET

// Rows of `parameters`.
enum LifRow { kDecay, kScale, kThreshold, kNear, kLifRows };

// v_t = decay (v_{t-1} > threshold ? 0 : v_{t-1}) + scale (I_t + R_t), in this order of operations; R_t is the sum of
// the rows of w_rec that the spikes on the list of step t - 1 name, each times its value, in the order of the list.
// The list of step t: neurons with v > threshold, then those with near < v <= threshold, each ascending.
template <class A>
struct LifForwardCall {
  LifLoopSizes size;
  const A* currents;         // (Q, T, R, N)
  const A* w_rec;            // (Q, N, N), or (Q, 0, N): not recurrent
  const A* parameters;       // (Q, 4, N) as LifRow
  const A* v0;               // (Q, R, N) voltages of the step before the first
  const A* values0;          // (Q, R, S) its list, read where recurrent: the first n_spikes0 slots; a count outside of
  const int32_t* ids0;       // (Q, R, S) 0 ... S means the nearest of the two, an id outside of 0 ... N - 1 nothing,
  const int32_t* n_spikes0;  // (Q, R)    and an id may stand there more than once
  const int32_t* window;     // (Q, T, R, 2) the first neuron (0 ... N - 1) of those that are near in a step whatever
                             // their voltage, and how many they are, going round; null: none
  int32_t* ids;              // (Q, T, R, S) 0 in slots that are not used
  A* excess;                 // (Q, T, R, S) v - threshold of the neuron of a slot, 0 in slots that are not used
  int32_t *n_spikes, *n_near;  // (Q, T, R) in the list
  int32_t* n_lost;             // (Q, T, R) spikes that are not
  int32_t* n_near_dropped;     // (Q, T, R) near ones that are not
  uint32_t* fired;             // (Q, T, R, W = words_of(N)) bit n % 32 of word n / 32: v > threshold, listed or lost;
                               // spare bits are 0
  A* v_last;                   // (Q, R, N) voltages of the last step
};

// The walk back, from lam_{T+1} = 0 and dI_{T+1} = 0, with r_t = 0 where a neuron fired in step t - 1 (in the step
// before the first: where v0 > threshold), else 1:
//
//   e_t[s] = ct_excess_t[s] + factor_t[s] sum over c of w_rec[ids_t[s], c] dI_{t+1}[c]     (the sum: where recurrent)
//   lam_t  = decay r_{t+1} lam_{t+1} + sum over the used slots s of e_t[s] at neuron ids_t[s]     (+ ct_v_last, t = T)
//   dI_t   = scale lam_t
//
// Lists are those of a forward call: a step's used ids are different from each other. Ids outside of 0 ... N - 1 are as
// if their slots were not used, and counts outside of 0 ... S mean the nearest of the two.
template <class A>
struct LifBackwardCall {
  LifLoopSizes size;
  const int32_t* ids;        // (Q, T, R, S)
  const int32_t* n_listed;   // (Q, T, R) used slots: spikes and near ones
  const A* factor;           // (Q, T, R, S) surrogate derivative of each entry; read where recurrent
  const uint32_t* fired;     // (Q, T, R, W)
  const A* w_rec;            // (Q, N, N) or (Q, 0, N)
  const A* parameters;       // (Q, 4, N)
  const A* v0;               // (Q, R, N)
  const int32_t* ids0;       // (Q, R, S)
  const int32_t* n_listed0;  // (Q, R)
  const A* ct_excess;        // (Q, T, R, S)
  const A* ct_v_last;        // (Q, R, N)
  A* d_currents;             // (Q, T, R, N) dI
  A* d_excess;               // (Q, T, R, S) e, 0 in slots that are not used
  A* d_v0;                   // (Q, R, N) decay r_1 lam_1
  A* d_values0;              // (Q, R, S) sum over c of w_rec[ids0[s], c] dI_1[c] for s < n_listed0, else 0
};

}  // namespace ranvier
