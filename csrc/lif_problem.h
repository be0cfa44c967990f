// What the CPU kernels of the LIF sequence compute on: a parameter set as they want it, the arrays of a sample, sums.
//
// Neurons come in blocks of kLanes, padded with neurons that never fire and have no weights.
#pragma once
#include <cmath>
#include <limits>

#include "arrival.h"
#include "lanes.h"
#include "lif_call.h"
#include "lif_step.h"

namespace ranvier {
namespace RANVIER_NS {

constexpr int64_t kChunk = 64;  // steps between two deliveries of input events

// A weight matrix as (block, source, lane): the synapses of a source in a block are neighbours. With u the time from
// an arrival at the first instant of a step to the end of the bucket it falls into (arrival.h):
template <class R>
struct Synapses {
  int64_t n_sources = 0;
  R *w, *decay;  // w exp(-u / tau_syn), exp(-u / tau_syn)
  R *q, *u;      // q(u), u [ms]
  int32_t* at;   // its quad in the bucket as many slots ahead as the delay has whole steps

  int64_t place(int64_t block, int64_t source) const { return (block * n_sources + source) * kLanes; }

  // Constants are (padded,). Returns the most whole steps of a delay; what arrives behind the end counts nowhere, so
  // `n_steps` is the most.
  int32_t fill(const R* weights, const R* delays, int64_t sources, int64_t n, int64_t n_steps, R dt, const R* rate,
               const R* c) {
    n_sources = sources;
    const int64_t blocks = (n + kLanes - 1) / kLanes, size = blocks * sources * kLanes;
    w = numbers_.of(4 * size), decay = w + size, q = decay + size, u = q + size, at = whole_.of(size);
    int32_t longest = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int valid = static_cast<int>(std::min<int64_t>(kLanes, n - b * kLanes));
      for (int64_t j = 0; j < sources; ++j) {
        alignas(64) R weight[kLanes] = {}, delay[kLanes] = {};
        std::copy(weights + j * n + b * kLanes, weights + j * n + b * kLanes + valid, weight);
        std::copy(delays + j * n + b * kLanes, delays + j * n + b * kLanes + valid, delay);
        alignas(64) int32_t step[kLanes];
        const R beyond = static_cast<R>(n_steps);
        const int64_t to = place(b, j);
        RANVIER_LANES
        for (int l = 0; l < kLanes; ++l) {
          const R steps = std::floor(delay[l] / dt);
          const R kept = steps > 0 ? (steps < beyond ? steps : beyond) : R(0);
          const R left = steps > beyond ? dt : dt - (delay[l] - kept * dt);
          const R decayed = exp_far(-left * rate[b * kLanes + l]);
          step[l] = static_cast<int32_t>(kept);
          u[to + l] = left, decay[to + l] = decayed, w[to + l] = weight[l] * decayed;
          q[to + l] = q_of<false>(left, c[b * kLanes + l]);
        }
        for (int l = 0; l < kLanes; ++l) {
          longest = std::max(longest, step[l]);
          at[to + l] = step[l] * kSlot + quad_of<R>(l);
        }
      }
    }
    return longest;
  }

 private:
  Aligned<R> numbers_;
  Aligned<int32_t> whole_;
};

// How the exponentials of a spike's offset are formed.
enum class Mode {
  kUniform,  // once a spike: all neurons have the same time constants
  kNear,     // a lane each, by polynomials: steps are short beside the time constants
  kFar,      // a lane each
};

// A parameter set and what follows from it, made once a call; memory is kept from call to call.
template <class R>
struct Problem {
  int64_t n_inputs, n, n_steps, n_events, capacity, blocks, padded;
  R dt, unit;
  bool recurrent, single;
  Mode mode;
  int32_t slots;  // of the ring
  Synapses<R> in, rec;
  R *rate, *c, *alpha, *beta, *kappa, *reach, *grow;  // (padded,) with reach = q(dt), grow = exp(c dt)
  R *back_v, *back_i, *back_vi, *rate_mem, *v_th;     // (padded,)
  std::vector<Membrane<R>> membrane;                  // (N,)

  int valid(int64_t block) const { return static_cast<int>(std::min<int64_t>(kLanes, n - block * kLanes)); }
  int64_t ring_size() const { return blocks * slots * kSlot; }
  // A block's part of the ring, and the bucket of neuron k in a slot.
  R* ring_of(R* ring, int64_t block) const { return ring + block * slots * kSlot; }
  R* bucket(R* ring, int32_t slot, int64_t k) const {
    return ring_of(ring, k / kLanes) + slot * kSlot + quad_of<R>(static_cast<int>(k % kLanes));
  }

  void prepare(const Call<R>& call, int64_t set) {
    n_inputs = call.n_inputs, n = call.n, n_steps = call.n_steps, n_events = call.n_events, capacity = call.capacity;
    dt = call.dt, unit = call.unit, recurrent = call.recurrent, single = call.single;
    blocks = (n + kLanes - 1) / kLanes, padded = blocks * kLanes;
    R** const arrays[] = {&rate, &c,      &alpha,  &beta,    &kappa,    &reach,
                          &grow, &back_v, &back_i, &back_vi, &rate_mem, &v_th};
    R* const memory = constants_.of(12 * padded);
    for (int x = 0; x < 12; ++x) *arrays[x] = memory + x * padded;
    membrane.resize(n);
    R largest = 0;
    bool uniform = true;
    for (int64_t k = 0; k < padded; ++k) {
      const int64_t from = set * n + std::min(k, n - 1);
      const Membrane<R> m(call.tau_mem[from], call.tau_syn[from], call.v_th[from]);
      if (k < n) membrane[k] = m;
      v_th[k] = k < n ? m.v_th : std::numeric_limits<R>::infinity();
      rate[k] = m.rate_syn, rate_mem[k] = m.rate_mem, c[k] = m.c;
      alpha[k] = std::exp(-dt / m.tau_syn);
      beta[k] = std::exp(-dt / m.tau_mem);
      reach[k] = m.q(dt), grow[k] = 1 + m.c * reach[k];
      kappa[k] = alpha[k] * reach[k];
      back_v[k] = 1 / beta[k];
      back_i[k] = 1 / alpha[k];
      back_vi[k] = back_i[k] * m.q(-dt);
      largest = std::max(largest, std::max(rate[k], std::abs(c[k])));
      uniform = uniform && rate[k] == rate[0] && c[k] == c[0];
    }
    mode = uniform ? Mode::kUniform : dt * largest <= R(kNearest) ? Mode::kNear : Mode::kFar;
    const int64_t in_at = set * n_inputs * n, rec_at = set * n * n;
    const int32_t in_most = in.fill(call.w_in + in_at, call.d_in + in_at, n_inputs, n, n_steps, dt, rate, c);
    const int32_t rec_most =
        recurrent ? rec.fill(call.w_rec + rec_at, call.d_rec + rec_at, n, n, n_steps, dt, rate, c) : 0;
    // an arrival lies at most one step behind the whole steps of its delay
    slots = static_cast<int32_t>(kChunk) + std::max(in_most, rec_most) + 2;
  }

 private:
  Aligned<R> constants_;
};

// The arrays of one sample, named and shaped as in lif_call.h; null where they are switched off or of the other pass.
template <class R>
struct Sample {
  const R* time;                                          // (E,)
  const int32_t* channel;                                 // (E,)
  R *count, *first_offset, *v;                            // (N,)
  int32_t *first_step, *n_spikes, *overflow;              // (N,), (), ()
  int32_t *spike_step, *spike_neuron;                     // (C,)
  R *spike_g, *spike_state;                               // (C,), (C, 5)
  R *v_free, *i_free, *v_trace;                           // (T, N)
  const R *ct_count, *ct_first, *ct_v, *ct_g, *ct_trace;  // (N,) thrice, (C,), (T, N)
  R* dt_event;                                            // (E,)

  // How many events lie inside of the run; they are sorted, padded with +inf.
  int64_t events_inside(const Problem<R>& p) const {
    const R limit = static_cast<R>(p.n_steps) * p.dt;
    int64_t e = 0;
    while (e < p.n_events && time[e] < limit) ++e;
    return e;
  }
};

// Where backward adds the gradients of a parameter set; rows of targets are padded to whole blocks.
template <class R>
struct Sums {
  R *dw_in, *dd_in;                   // (M, padded)
  R *dw_rec, *dd_rec;                 // (N, padded)
  R *d_tau_mem, *d_tau_syn, *d_v_th;  // (padded,); null without `parameters`
};

// What a thread computes in, kept from sample to sample.
template <class R>
struct Scratch {
  Aligned<R> ring, state;
  Aligned<int32_t> look;
};

}  // namespace RANVIER_NS
}  // namespace ranvier
