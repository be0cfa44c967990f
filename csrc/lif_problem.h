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
#include "positions_lanes.h"

namespace ranvier {
namespace RANVIER_NS {

constexpr int64_t kChunk = 64;  // steps between two deliveries of input events

// What a block knows of its neurons: kLanes numbers each, from these places on.
enum Constant {
  kRate = 0,            // 1/tau_syn
  kC = kLanes,          // Eq. 2
  kAlpha = 2 * kLanes,  // exp(-dt/tau_syn)
  kBeta = 3 * kLanes,   // exp(-dt/tau_mem)
  kKappa = 4 * kLanes,  // kappa(dt)
  kReach = 5 * kLanes,  // q(dt)
  kGrow = 6 * kLanes,   // exp(c dt)
  kBackV = 7 * kLanes,  // the flow back by dt: 1/beta, 1/alpha, kappa(-dt)
  kBackI = 8 * kLanes,
  kBackVI = 9 * kLanes,
  kRateMem = 10 * kLanes,  // 1/tau_mem
  kTheta = 11 * kLanes,    // threshold, infinite for what is no neuron
  kConstants = 12,
};

// A weight matrix as (block, source, lane): the synapses of a source in a block are neighbours. With u the time from
// an arrival at the first instant of a step to the end of the bucket it falls into (arrival.h):
template <class R>
struct Synapses {
  int64_t n_sources = 0;
  R* near;      // (block, source, 2, lane): w exp(-u / tau_syn), q(u)
  R* far;       // (block, source, 2, lane): exp(-u / tau_syn), u [ms]
  int32_t* at;  // its quad in the bucket as many slots ahead as the delay has whole steps

  int64_t place(int64_t block, int64_t source) const { return (block * n_sources + source) * kLanes; }

  DelayRows<R> delays;

  // `constants` are those of Problem. Returns the most whole steps of a delay; what arrives behind the end counts
  // nowhere, so `n_steps` is the most.
  int32_t fill(const R* weights, const Delays<R>& made_of, int64_t set, int64_t n_steps, R dt, const R* constants) {
    const int64_t sources = made_of.sources, n = made_of.n;
    n_sources = sources, weights += set * sources * n;
    delays.take(made_of, set, ends_.of(DelayRows<R>::size(n, made_of.dims)));
    const int64_t blocks = (n + kLanes - 1) / kLanes, size = blocks * sources * kLanes;
    near = numbers_.of(4 * size), far = near + 2 * size, at = whole_.of(size);
    int32_t longest = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int valid = static_cast<int>(std::min<int64_t>(kLanes, n - b * kLanes));
      const R* const constant = constants + b * kConstants * kLanes;
      for (int64_t j = 0; j < sources; ++j) {
        alignas(64) R weight[kLanes] = {}, delay[kLanes];
        std::copy(weights + j * n + b * kLanes, weights + j * n + b * kLanes + valid, weight);
        delays.of(b, j, delay);
        alignas(64) int32_t step[kLanes];
        const R beyond = static_cast<R>(n_steps);
        R *to_near = near + 2 * place(b, j), *to_far = far + 2 * place(b, j);
        RANVIER_LANES
        for (int l = 0; l < kLanes; ++l) {
          const R steps = std::floor(delay[l] / dt);
          const R kept = steps > 0 ? (steps < beyond ? steps : beyond) : R(0);
          const R left = steps > beyond ? dt : dt - (delay[l] - kept * dt);
          const R decay = exp_far(-left * constant[kRate + l]);
          step[l] = static_cast<int32_t>(kept);
          to_near[l] = weight[l] * decay, to_near[kLanes + l] = q_of<false>(left, constant[kC + l]);
          to_far[l] = decay, to_far[kLanes + l] = left;
        }
        for (int l = 0; l < kLanes; ++l) {
          longest = std::max(longest, step[l]);
          at[place(b, j) + l] = step[l] * kSlot + quad_of<R>(l);
        }
      }
    }
    return longest;
  }

 private:
  Aligned<R> numbers_, ends_;
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
  R* constants;                       // (block, kConstants, lane)
  std::vector<Membrane<R>> membrane;  // (N,)

  int valid(int64_t block) const { return static_cast<int>(std::min<int64_t>(kLanes, n - block * kLanes)); }
  const R* of(int64_t block) const { return constants + block * kConstants * kLanes; }
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
    constants = constants_.of(padded * kConstants);
    membrane.resize(n);
    R largest = 0;
    bool uniform = true;
    for (int64_t k = 0; k < padded; ++k) {
      const int64_t from = set * n + std::min(k, n - 1);
      const Membrane<R> m(call.tau_mem[from], call.tau_syn[from], call.v_th[from]);
      if (k < n) membrane[k] = m;
      R* const to = constants + k / kLanes * kConstants * kLanes + k % kLanes;
      to[kRate] = m.rate_syn, to[kC] = m.c, to[kRateMem] = m.rate_mem;
      to[kAlpha] = std::exp(-dt / m.tau_syn), to[kBeta] = std::exp(-dt / m.tau_mem);
      to[kReach] = m.q(dt), to[kGrow] = 1 + m.c * to[kReach];
      to[kKappa] = to[kAlpha] * to[kReach];
      to[kBackV] = 1 / to[kBeta], to[kBackI] = 1 / to[kAlpha], to[kBackVI] = to[kBackI] * m.q(-dt);
      to[kTheta] = k < n ? m.v_th : std::numeric_limits<R>::infinity();
      largest = std::max(largest, std::max(m.rate_syn, std::abs(m.c)));
      uniform = uniform && m.rate_syn == constants[kRate] && m.c == constants[kC];
    }
    mode = uniform ? Mode::kUniform : dt * largest <= R(kNearest) ? Mode::kNear : Mode::kFar;
    const int32_t in_most = in.fill(call.w_in, delays_in(call), set, n_steps, dt, constants);
    const int32_t rec_most = recurrent ? rec.fill(call.w_rec, delays_rec(call), set, n_steps, dt, constants) : 0;
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
