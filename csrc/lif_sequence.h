// One sample through the whole sequence, forward and backward (docs/equations.md: 5 to 16, and the adjoint, 26 to 31).
//
// Shapes: M inputs, N neurons, T steps, E event slots; weights and delays (M, N) and (N, N), source first.
//
// Neurons come in blocks of kLanes, padded with neurons that never fire. A block keeps the buckets of the steps ahead
// in a ring, (block, slot, lane, 4): JI, JV, JQ, 0 of one bucket are one vector register, added in one instruction.
// Time goes in chunks of kChunk steps: first the input events of the chunk are delivered, block by block, so that the
// buckets they touch and a block's synapses stay in the caches nearest by; then the chunk is stepped through, and
// spikes are delivered as they come. The ring covers a chunk and the longest delay, so nothing wraps onto itself, and
// what arrives behind the end of the run falls into slots that nobody reads. The walk back is the same with the ring
// holding the buckets' adjoints: a chunk of steps, then the derivatives of its input events, whose buckets all lie
// ahead.
//
// Arrivals are worked on in two phases for a few spikes and blocks at a time (Batch): where and with what they arrive,
// one lane a target, and then the scattered additions or loads, one register a target. Plain loops over lanes are
// vectorised by the compiler; the turn between lanes and registers is written out, since compilers do it badly. A phase
// reads what the one before wrote some time ago: what a processor has just written in pieces it cannot read as a whole.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arrival.h"
#include "lif_call.h"
#include "lif_step.h"

namespace ranvier {
namespace RANVIER_NS {

constexpr int kLanes = 16;         // neurons of a block: one AVX-512 register of floats
constexpr int kSlot = 4 * kLanes;  // numbers of a block's bucket
constexpr int64_t kChunk = 64;     // steps between two deliveries of input events
constexpr int kTile = 256;         // input events that go through all blocks together
constexpr int kBatch = 8;          // blocks of arrivals between two phases

// Four neighbouring numbers.
template <class R>
struct Quad;
template <>
struct Quad<float> {
  typedef float type __attribute__((vector_size(16), may_alias));
  typedef int32_t index __attribute__((vector_size(16)));
};
template <>
struct Quad<double> {
  typedef double type __attribute__((vector_size(32), may_alias));
  typedef int64_t index __attribute__((vector_size(32)));
};
#if defined(__clang__)
#define RANVIER_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RANVIER_PICK(a, b, ...) __builtin_shuffle(a, b, typename Quad<R>::index{__VA_ARGS__})
#endif
// Before a loop over lanes: what one turn writes no other turn reads.
#if defined(__clang__)
#define RANVIER_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define RANVIER_LANES _Pragma("GCC ivdep")
#endif

template <class R>
inline typename Quad<R>::type& quad(R* x) {
  return *reinterpret_cast<typename Quad<R>::type*>(x);
}
template <class R>
inline const typename Quad<R>::type& quad(const R* x) {
  return *reinterpret_cast<const typename Quad<R>::type*>(x);
}

// Memory on a cache line's boundary; what it holds is not kept when it grows.
template <class R>
class Aligned {
 public:
  R* of(int64_t size) {
    constexpr int64_t kLine = 64;
    const size_t needed = static_cast<size_t>(size) + kLine / sizeof(R);
    if (memory_.size() < needed) memory_ = std::vector<R>(needed);
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + ((at + kLine - 1) / kLine * kLine - at) / sizeof(R);
  }

 private:
  std::vector<R> memory_;
};

// A weight matrix as (block, source, lane): the synapses of a source in a block are neighbours.
template <class R>
struct Synapses {
  int64_t n_sources = 0;
  R *w, *d_offset;  // weight, delay behind its whole steps [ms]
  int32_t* d_step;

  int64_t place(int64_t block, int64_t source) const { return (block * n_sources + source) * kLanes; }

  // Returns the most whole steps of a delay. What arrives behind the end counts nowhere, so `n_steps` is the most.
  int32_t fill(const R* weights, const R* delays, int64_t sources, int64_t n, int64_t n_steps, R dt) {
    n_sources = sources;
    const int64_t blocks = (n + kLanes - 1) / kLanes, size = blocks * sources * kLanes;
    w = numbers_.of(2 * size), d_offset = w + size, d_step = whole_.of(size);
    int32_t longest = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t valid = std::min<int64_t>(kLanes, n - b * kLanes);
      for (int64_t j = 0; j < sources; ++j) {
        const R *from_w = weights + j * n + b * kLanes, *from_d = delays + j * n + b * kLanes;
        const int64_t at = place(b, j);
        R *to_w = w + at, *offset = d_offset + at;
        int32_t* step = d_step + at;
        if (valid < kLanes) std::fill(to_w, to_w + kLanes, R(0)), std::fill(offset, offset + kLanes, R(0));
        if (valid < kLanes) std::fill(step, step + kLanes, 0);
        const R beyond = static_cast<R>(n_steps);
        RANVIER_LANES
        for (int64_t l = 0; l < valid; ++l) {
          const R steps = std::floor(from_d[l] / dt);
          const R kept = steps > 0 ? (steps < beyond ? steps : beyond) : R(0);
          to_w[l] = from_w[l];
          offset[l] = steps > beyond ? R(0) : from_d[l] - kept * dt;
          step[l] = static_cast<int32_t>(kept);
        }
        RANVIER_LANES
        for (int l = 0; l < kLanes; ++l) longest = std::max(longest, step[l]);
      }
    }
    return longest;
  }

 private:
  Aligned<R> numbers_;
  Aligned<int32_t> whole_;
};

// A parameter set and what follows from it, made once a call; memory is kept from call to call.
template <class R>
struct Problem {
  int64_t n_inputs, n, n_steps, n_events, capacity, blocks, padded;
  R dt, unit;
  bool recurrent, single;
  bool near;      // arrivals are near enough to the end of their step for polynomials (arrival.h)
  int32_t slots;  // of the ring
  Synapses<R> in, rec;
  R *rate, *c, *alpha, *beta, *kappa, *back_v, *back_i, *back_vi, *v_th;  // (padded,) constants of a step
  std::vector<Membrane<R>> membrane;                                      // (N,)

  int valid(int64_t block) const { return static_cast<int>(std::min<int64_t>(kLanes, n - block * kLanes)); }
  int64_t ring_size() const { return blocks * slots * kSlot; }
  R* ring_of(R* ring, int64_t block) const { return ring + block * slots * kSlot; }
  const R* ring_of(const R* ring, int64_t block) const { return ring + block * slots * kSlot; }

  void prepare(const Call<R>& call, int64_t set) {
    n_inputs = call.n_inputs, n = call.n, n_steps = call.n_steps, n_events = call.n_events, capacity = call.capacity;
    dt = call.dt, unit = call.unit, recurrent = call.recurrent, single = call.single;
    blocks = (n + kLanes - 1) / kLanes, padded = blocks * kLanes;
    const int64_t in_at = set * n_inputs * n, rec_at = set * n * n;
    const int32_t in_most = in.fill(call.w_in + in_at, call.d_in + in_at, n_inputs, n, n_steps, dt);
    const int32_t rec_most = recurrent ? rec.fill(call.w_rec + rec_at, call.d_rec + rec_at, n, n, n_steps, dt) : 0;
    // an arrival lies at most two steps behind the whole steps of its delay (arrival.h, land)
    slots = static_cast<int32_t>(kChunk) + std::max(in_most, rec_most) + 3;
    R** const arrays[] = {&rate, &c, &alpha, &beta, &kappa, &back_v, &back_i, &back_vi, &v_th};
    R* const memory = constants_.of(9 * padded);
    for (int x = 0; x < 9; ++x) *arrays[x] = memory + x * padded;
    membrane.resize(n);
    R largest = 0;
    for (int64_t k = 0; k < padded; ++k) {
      const int64_t from = set * n + std::min(k, n - 1);
      const Membrane<R> m(call.tau_mem[from], call.tau_syn[from], call.v_th[from]);
      if (k < n) membrane[k] = m;
      v_th[k] = k < n ? m.v_th : std::numeric_limits<R>::infinity();
      rate[k] = m.rate_syn, c[k] = m.c;
      alpha[k] = std::exp(-dt / m.tau_syn);
      beta[k] = std::exp(-dt / m.tau_mem);
      kappa[k] = alpha[k] * m.q(dt);
      back_v[k] = 1 / beta[k];
      back_i[k] = 1 / alpha[k];
      back_vi[k] = back_i[k] * m.q(-dt);
      largest = std::max(largest, std::max(rate[k], std::abs(c[k])));
    }
    near = 2 * dt * largest <= R(kNearest);
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
};

// Input events that go through all blocks together; what they share is formed once.
template <class R>
struct Tile {
  int count;
  int32_t slot[kTile], source[kTile];
  R offset[kTile];

  // Events of steps before `end`, from event e on.
  void ahead(const Problem<R>& p, const Sample<R>& s, int64_t e, int64_t last, int64_t end) {
    for (count = 0; e < last && count < kTile; ++e, ++count)
      if (take(p, s, e) >= end) break;
  }
  // Events of steps from `begin` on, from event e - 1 down.
  void back(const Problem<R>& p, const Sample<R>& s, int64_t e, int64_t begin) {
    for (count = 0; e > 0 && count < kTile; --e, ++count)
      if (take(p, s, e - 1) < begin) break;
  }

 private:
  int32_t take(const Problem<R>& p, const Sample<R>& s, int64_t e) {
    int32_t step;
    split_time(s.time[e], p.dt, step, offset[count]);
    slot[count] = step % p.slots;
    source[count] = s.channel[e];
    return step;
  }
};

// The arrivals of some spikes in some blocks, lane by lane: first where and when, then what.
template <class R>
struct Batch {
  alignas(64) R h[kBatch * kLanes], f[kBatch * kLanes], y[kBatch * kLanes];
  alignas(64) R a[kBatch * kLanes], b[kBatch * kLanes], q[kBatch * kLanes];  // moments, or their adjoints
  alignas(64) uint32_t at[kBatch * kLanes];                                  // in the block's part of the ring

  // A spike of step slot `slot` in block `block`, whose synapses begin at `synapse`, as number x of the batch.
  template <bool kNear, int kLeast>
  void place(int x, const Problem<R>& p, const Synapses<R>& synapses, int64_t synapse, int64_t block, R offset,
             int32_t slot) {
    const R* d_offset = synapses.d_offset + synapse;
    const int32_t* d_step = synapses.d_step + synapse;
    const R *rate = p.rate + block * kLanes, *c = p.c + block * kLanes;
    R *h_ = h + x * kLanes, *f_ = f + x * kLanes, *y_ = y + x * kLanes;
    uint32_t* at_ = at + x * kLanes;
    const R dt = p.dt;
    const int32_t slots = p.slots;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      int32_t ahead;
      land(offset, d_step[l], d_offset[l], dt, kLeast, ahead, h_[l]);
      arrive<kNear>(h_[l], rate[l], c[l], f_[l], y_[l]);
      const int32_t to = slot + ahead;
      at_[l] = static_cast<uint32_t>((to >= slots ? to - slots : to) * kSlot + 4 * l);
    }
  }

  // Eq. 5.
  void weigh(int x, const R* w) {
    const R *f_ = f + x * kLanes, *y_ = y + x * kLanes;
    R *a_ = a + x * kLanes, *b_ = b + x * kLanes, *q_ = q + x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R first = w[l] * f_[l], second = first * y_[l];
      a_[l] = first, b_[l] = second, q_[l] = second * y_[l];
    }
  }

  // Adds the moments of number x to the buckets of its block.
  void scatter(int x, int valid, R* buckets) const {
    using Q = typename Quad<R>::type;
    const R *a_ = a + x * kLanes, *b_ = b + x * kLanes, *q_ = q + x * kLanes;
    const uint32_t* at_ = at + x * kLanes;
    const Q zero = {};
    for (int l = 0; l < valid; l += 4) {
      const Q i = quad(a_ + l), v = quad(b_ + l), s = quad(q_ + l);
      const Q low = RANVIER_PICK(i, v, 0, 4, 1, 5), high = RANVIER_PICK(i, v, 2, 6, 3, 7);
      const Q low_s = RANVIER_PICK(s, zero, 0, 4, 1, 5), high_s = RANVIER_PICK(s, zero, 2, 6, 3, 7);
      quad(buckets + at_[l]) += RANVIER_PICK(low, low_s, 0, 1, 4, 5);
      quad(buckets + at_[l + 1]) += RANVIER_PICK(low, low_s, 2, 3, 6, 7);
      quad(buckets + at_[l + 2]) += RANVIER_PICK(high, high_s, 0, 1, 4, 5);
      quad(buckets + at_[l + 3]) += RANVIER_PICK(high, high_s, 2, 3, 6, 7);
    }
  }

  // Reads the adjoints of the buckets that number x went into.
  void gather(int x, const R* adjoints) {
    using Q = typename Quad<R>::type;
    R *a_ = a + x * kLanes, *b_ = b + x * kLanes, *q_ = q + x * kLanes;
    const uint32_t* at_ = at + x * kLanes;
    for (int l = 0; l < kLanes; l += 4) {
      const Q x0 = quad(adjoints + at_[l]), x1 = quad(adjoints + at_[l + 1]), x2 = quad(adjoints + at_[l + 2]),
              x3 = quad(adjoints + at_[l + 3]);
      const Q low = RANVIER_PICK(x0, x1, 0, 4, 1, 5), high = RANVIER_PICK(x2, x3, 0, 4, 1, 5);
      const Q low_s = RANVIER_PICK(x0, x1, 2, 6, 2, 6), high_s = RANVIER_PICK(x2, x3, 2, 6, 2, 6);
      quad(a_ + l) = RANVIER_PICK(low, high, 0, 1, 4, 5);
      quad(b_ + l) = RANVIER_PICK(low, high, 2, 3, 6, 7);
      quad(q_ + l) = RANVIER_PICK(low_s, high_s, 0, 1, 4, 5);
    }
  }

  // Eq. 30: adds to dw, dd and to the lanes of `total` (dL/dt of the spike).
  void slopes(int x, const Problem<R>& p, const R* w, int64_t block, R* dw, R* dd, R* total) const {
    const R *rate = p.rate + block * kLanes, *c = p.c + block * kLanes;
    const int at_ = x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R f_ = f[at_ + l], y_ = y[at_ + l], la = a[at_ + l], lb = b[at_ + l], lq = q[at_ + l];
      dw[l] += slope_of_weight(f_, y_, la, lb, lq);
      const R dx = w[l] * slope_of_time(f_, y_, rate[l], c[l], la, lb, lq);
      dd[l] += dx;
      total[l] += dx;
    }
  }

  // The same for 1/tau_syn at fixed c, and for c.
  template <bool kNear>
  void slopes_of_constants(int x, const Problem<R>& p, const R* w, int64_t block, R* d_rate, R* d_c) const {
    const R* c = p.c + block * kLanes;
    const int at_ = x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R f_ = f[at_ + l], y_ = y[at_ + l], h_ = h[at_ + l], lb = b[at_ + l], lq = q[at_ + l];
      d_rate[l] -= h_ * w[l] * slope_of_weight(f_, y_, a[at_ + l], lb, lq);
      d_c[l] += w[l] * slope_of_c<kNear>(f_, y_, h_, c[l], lb, lq);
    }
  }
};

// The sum of the lanes, in a fixed order.
template <class R>
inline R sum_of_lanes(const R* x) {
  R part[4] = {};
  for (int l = 0; l < kLanes; l += 4)
    for (int k = 0; k < 4; ++k) part[k] += x[l + k];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

template <bool kNear, class R>
class Forward {
 public:
  Forward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch) : p_(p), s_(s) {
    ring_ = scratch.ring.of(p.ring_size());
    R** const arrays[] = {&v_, &i_, &old_v_, &old_i_, &ji_, &jv_, &bound_};
    R* const memory = scratch.state.of(7 * p.padded);
    for (int x = 0; x < 7; ++x) *arrays[x] = memory + x * p.padded;
  }

  void run() {
    const int64_t n = p_.n;
    std::fill(s_.count, s_.count + n, R(0));
    std::fill(s_.first_offset, s_.first_offset + n, R(0));
    std::fill(s_.first_step, s_.first_step + n, -1);
    std::fill(ring_, ring_ + p_.ring_size(), R(0));
    std::fill(v_, v_ + p_.padded, R(0));
    std::fill(i_, i_ + p_.padded, R(0));
    last_ = s_.events_inside(p_);
    for (int64_t t = 0; t < p_.n_steps; ++t, slot_ = slot_ + 1 == p_.slots ? 0 : slot_ + 1) {
      if (t % kChunk == 0) inputs(t + kChunk);
      for (int64_t b = 0; b < p_.blocks; ++b) take(b);
      std::swap(v_, old_v_);
      std::swap(i_, old_i_);
      bool any = false;
      for (int64_t b = 0; b < p_.blocks; ++b) any |= step(b);
      if (s_.v_free) std::copy(v_, v_ + n, s_.v_free + t * n);
      if (s_.i_free) std::copy(i_, i_ + n, s_.i_free + t * n);
      if (any) look(t);
      for (int64_t b = 0; b < p_.blocks; ++b) {
        R* bucket = p_.ring_of(ring_, b) + slot_ * kSlot;
        std::fill(bucket, bucket + kSlot, R(0));
      }
      if (s_.v_trace) std::copy(v_, v_ + n, s_.v_trace + t * n);
    }
    *s_.n_spikes = recorded_;
    *s_.overflow = lost_;
    std::copy(v_, v_ + n, s_.v);
  }

 private:
  // Input events of the steps before `end`.
  void inputs(int64_t end) {
    do {
      tile_.ahead(p_, s_, e_, last_, end);
      for (int64_t b = 0; b < p_.blocks; ++b)
        for (int x0 = 0; x0 < tile_.count; x0 += kBatch) {
          const int size = std::min(kBatch, tile_.count - x0);
          for (int x = 0; x < size; ++x) {
            const int64_t at = p_.in.place(b, tile_.source[x0 + x]);
            batch_.template place<kNear, 0>(x, p_, p_.in, at, b, tile_.offset[x0 + x], tile_.slot[x0 + x]);
            batch_.weigh(x, p_.in.w + at);
          }
          for (int x = 0; x < size; ++x) batch_.scatter(x, p_.valid(b), p_.ring_of(ring_, b));
        }
      e_ += tile_.count;
    } while (tile_.count == kTile);
  }

  // A spike of neuron k in the step that is being computed.
  void spike(int64_t k, R g) {
    for (int64_t b0 = 0; b0 < p_.blocks; b0 += kBatch) {
      const int size = static_cast<int>(std::min<int64_t>(kBatch, p_.blocks - b0));
      for (int x = 0; x < size; ++x) {
        const int64_t at = p_.rec.place(b0 + x, k);
        batch_.template place<kNear, 1>(x, p_, p_.rec, at, b0 + x, g, slot_);
        batch_.weigh(x, p_.rec.w + at);
      }
      for (int x = 0; x < size; ++x) batch_.scatter(x, p_.valid(b0 + x), p_.ring_of(ring_, b0 + x));
    }
  }

  // JI and JV of a block's bucket, lane by lane.
  void take(int64_t block) {
    using Q = typename Quad<R>::type;
    const R* bucket = p_.ring_of(ring_, block) + slot_ * kSlot;
    for (int l = 0; l < kLanes; l += 4) {
      const R* x = bucket + 4 * l;
      const Q low = RANVIER_PICK(quad(x), quad(x + 4), 0, 4, 1, 5);
      const Q high = RANVIER_PICK(quad(x + 8), quad(x + 12), 0, 4, 1, 5);
      quad(ji_ + block * kLanes + l) = RANVIER_PICK(low, high, 0, 1, 4, 5);
      quad(jv_ + block * kLanes + l) = RANVIER_PICK(low, high, 2, 3, 6, 7);
    }
  }

  // A block by Eq. 6; returns whether some neuron may fire: a bound on what `may_fire` finds, since no flow rises
  // faster than its largest current.
  bool step(int64_t block) {
    const int64_t k = block * kLanes;
    const R *alpha = p_.alpha + k, *beta = p_.beta + k, *kappa = p_.kappa + k;
    const R* v_th = p_.v_th + k;
    const R *v = old_v_ + k, *i = old_i_ + k, *ji = ji_ + k, *jv = jv_ + k;
    R *v_new = v_ + k, *i_new = i_ + k;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      v_new[l] = v[l] * beta[l] + i[l] * kappa[l] + jv[l];
      i_new[l] = i[l] * alpha[l] + ji[l];
    }
    const R *back_v = p_.back_v + k, *back_i = p_.back_i + k;
    const R* back_vi = p_.back_vi + k;
    R* bound = bound_ + k;
    const R dt = p_.dt;
    int32_t any = 0;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R v_b = v_new[l] * back_v[l] + i_new[l] * back_vi[l], i_b = i_new[l] * back_i[l];
      const R ahead = (v[l] > 0 ? v[l] : 0) + (i[l] > 0 ? i[l] : 0) * dt;
      const R behind = (v_b > 0 ? v_b : 0) + (i_b > 0 ? i_b : 0) * dt;
      const R high = ahead > behind ? ahead : behind;
      bound[l] = high > v_new[l] ? high : v_new[l];
      any |= bound[l] >= v_th[l] ? 1 : 0;
    }
    return any != 0;
  }

  // The neurons of step t that may fire.
  void look(int64_t t) {
    for (int64_t k = 0; k < p_.n; ++k) {
      if (!(bound_[k] >= p_.v_th[k]) || (p_.single && s_.first_step[k] >= 0)) continue;
      const Membrane<R>& m = p_.membrane[k];
      if (!may_fire(old_v_[k], old_i_[k], v_[k], i_[k], m, p_.dt)) continue;
      const R* bucket = p_.ring_of(ring_, k / kLanes) + slot_ * kSlot + k % kLanes * 4;
      const R from[5] = {old_v_[k], old_i_[k], bucket[0], bucket[1], bucket[2]};
      R g[kSpikesPerStep], v_end;
      bool still;
      const int fired =
          spikes_of_step(from[0], from[1], from[2], from[3], from[4], m, p_.dt, p_.single, g, v_end, still);
      if (!fired) continue;
      R decayed = 0;
      for (int f = 0; f < fired; ++f) {
        decayed += m.v_th * std::exp(-(p_.dt - g[f]) * m.rate_mem);
        record(t, k, g[f], from);
        if (p_.recurrent) spike(k, g[f]);
      }
      v_[k] -= decayed;
      if (s_.first_step[k] < 0) {
        s_.first_step[k] = static_cast<int32_t>(t);
        s_.first_offset[k] = g[0];
      }
      s_.count[k] += static_cast<R>(fired);
      lost_ += still;
    }
  }

  void record(int64_t t, int64_t k, R g, const R* from) {
    if (recorded_ == p_.capacity) {
      ++lost_;
      return;
    }
    s_.spike_step[recorded_] = static_cast<int32_t>(t);
    s_.spike_neuron[recorded_] = static_cast<int32_t>(k);
    s_.spike_g[recorded_] = g;
    if (s_.spike_state) std::copy(from, from + 5, s_.spike_state + int64_t(recorded_) * 5);
    ++recorded_;
  }

  const Problem<R>& p_;
  const Sample<R>& s_;
  R* ring_;
  R *v_, *i_, *old_v_, *old_i_;  // (padded,) behind the step and before it
  R *ji_, *jv_, *bound_;         // (padded,) of the step
  int64_t e_ = 0, last_ = 0;
  int32_t slot_ = 0, recorded_ = 0, lost_ = 0;
  Tile<R> tile_;
  Batch<R> batch_;
};

template <bool kNear, bool kParameters, class R>
class Backward {
 public:
  Backward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch, const Sums<R>& sums)
      : p_(p), s_(s), sums_(sums) {
    ring_ = scratch.ring.of(p.ring_size());
    R** const arrays[] = {&lam_v_,    &lam_i_,   &count_,    &v_start_, &i_start_,
                          &by_alpha_, &by_beta_, &by_kappa_, &rate_,    &c_};
    R* const memory = scratch.state.of(10 * p.padded);
    for (int x = 0; x < 10; ++x) *arrays[x] = memory + x * p.padded;
    std::fill(memory, memory + 10 * p.padded, R(0));
    std::copy(s.ct_v, s.ct_v + p.n, lam_v_);
    std::copy(s.ct_count, s.ct_count + p.n, count_);
    record_ = *s.n_spikes;
  }

  void run() {
    const int64_t n = p_.n;
    e_ = s_.events_inside(p_);
    if (s_.dt_event) std::fill(s_.dt_event + e_, s_.dt_event + p_.n_events, R(0));
    std::fill(ring_, ring_ + p_.ring_size(), R(0));
    slot_ = static_cast<int32_t>((p_.n_steps - 1) % p_.slots);
    for (int64_t t = p_.n_steps - 1; t >= 0; --t, slot_ = slot_ == 0 ? p_.slots - 1 : slot_ - 1) {
      if (s_.ct_trace)
        for (int64_t k = 0; k < n; ++k) lam_v_[k] += s_.ct_trace[t * n + k];
      spikes(t);
      if (kParameters) start_of(t);
      for (int64_t b = 0; b < p_.blocks; ++b) step(t, b);
      for (const Change& x : changes_) {
        R* bucket = p_.ring_of(ring_, x.k / kLanes) + slot_ * kSlot + x.k % kLanes * 4;
        lam_v_[x.k] += x.d[0];
        lam_i_[x.k] += x.d[1];
        for (int q = 0; q < 3; ++q) bucket[q] += x.d[2 + q];
      }
      if (t % kChunk == 0) inputs(t);
    }
    if (kParameters) constants();
  }

 private:
  // What the spikes of a neuron in one step add to the adjoints of v, i at its start and of its bucket.
  struct Change {
    int64_t k;
    R d[5];
  };

  // The spikes of step t. Resets act on v behind the free end state: they see lam_v as it is before the surrogate of
  // this step enters, so what they change waits until the step is done.
  void spikes(int64_t t) {
    constexpr int kSlopes = kParameters ? 8 : 5;
    const R dt = p_.dt;
    changes_.clear();
    const int32_t end = record_;
    while (record_ > 0 && s_.spike_step[record_ - 1] == t) --record_;
    for (int32_t a = record_; a < end;) {
      int32_t b = a;
      const int64_t k = s_.spike_neuron[a];
      while (b < end && s_.spike_neuron[b] == k) ++b;
      const Membrane<R>& m = p_.membrane[k];
      R slopes[kSpikesPerStep * kSlopes];
      spike_jacobian<kSlopes>(s_.spike_state + int64_t(a) * 5, m, dt, p_.single, static_cast<int>(b - a), slopes);
      Change change{k, {}};
      for (int32_t f = a; f < b; ++f) {
        const R* slope = slopes + (f - a) * kSlopes;
        const R rest = dt - s_.spike_g[f], left = std::exp(-rest * m.rate_mem);  // of the reset, at the end of the step
        R lam = s_.ct_g[f] - lam_v_[k] * m.v_th * m.rate_mem * left;
        if (f == a && s_.first_step[k] == t) lam += s_.ct_first[k];
        if (p_.recurrent) lam += spike(k, s_.spike_g[f]);
        for (int q = 0; q < 5; ++q) change.d[q] += lam * slope[q];
        if constexpr (kParameters) {
          sums_.d_tau_mem[k] += lam * slope[kTauMem] - lam_v_[k] * m.v_th * left * rest * m.rate_mem * m.rate_mem;
          sums_.d_tau_syn[k] += lam * slope[kTauSyn];
          sums_.d_v_th[k] += lam * slope[kThreshold] - lam_v_[k] * left;
        }
      }
      changes_.push_back(change);
      a = b;
    }
  }

  // What a spike of neuron k sent; returns dL/dt of it.
  R spike(int64_t k, R g) {
    alignas(64) R total[kLanes] = {};
    for (int64_t b0 = 0; b0 < p_.blocks; b0 += kBatch) {
      const int size = static_cast<int>(std::min<int64_t>(kBatch, p_.blocks - b0));
      for (int x = 0; x < size; ++x)
        batch_.template place<kNear, 1>(x, p_, p_.rec, p_.rec.place(b0 + x, k), b0 + x, g, slot_);
      for (int x = 0; x < size; ++x) batch_.gather(x, p_.ring_of(ring_, b0 + x));
      for (int x = 0; x < size; ++x)
        slopes(x, p_.rec, p_.rec.place(b0 + x, k), b0 + x, k, sums_.dw_rec, sums_.dd_rec, total);
    }
    return sum_of_lanes(total);
  }

  // Input events of the steps from `begin` on.
  void inputs(int64_t begin) {
    do {
      tile_.back(p_, s_, e_, begin);
      std::fill(total_, total_ + tile_.count * kLanes, R(0));
      for (int64_t b = 0; b < p_.blocks; ++b)
        for (int x0 = 0; x0 < tile_.count; x0 += kBatch) {
          const int size = std::min(kBatch, tile_.count - x0);
          const int32_t *source = tile_.source + x0, *slot = tile_.slot + x0;
          for (int x = 0; x < size; ++x)
            batch_.template place<kNear, 0>(x, p_, p_.in, p_.in.place(b, source[x]), b, tile_.offset[x0 + x], slot[x]);
          for (int x = 0; x < size; ++x) batch_.gather(x, p_.ring_of(ring_, b));
          for (int x = 0; x < size; ++x)
            slopes(x, p_.in, p_.in.place(b, source[x]), b, source[x], sums_.dw_in, sums_.dd_in,
                   total_ + (x0 + x) * kLanes);
        }
      if (s_.dt_event)
        for (int x = 0; x < tile_.count; ++x) s_.dt_event[e_ - 1 - x] = sum_of_lanes(total_ + x * kLanes);
      e_ -= tile_.count;
    } while (tile_.count == kTile);
  }

  void slopes(int x, const Synapses<R>& synapses, int64_t synapse, int64_t block, int64_t source, R* dw, R* dd,
              R* total) {
    const int64_t to = source * p_.padded + block * kLanes;
    batch_.slopes(x, p_, synapses.w + synapse, block, dw + to, dd + to, total);
    if (kParameters)
      batch_.template slopes_of_constants<kNear>(x, p_, synapses.w + synapse, block, rate_ + block * kLanes,
                                                 c_ + block * kLanes);
  }

  // (v, i) at the start of step t: the free end of the step before, less its resets.
  void start_of(int64_t t) {
    const int64_t n = p_.n;
    if (t == 0) {
      std::fill(v_start_, v_start_ + n, R(0));
      std::fill(i_start_, i_start_ + n, R(0));
      return;
    }
    std::copy(s_.v_free + (t - 1) * n, s_.v_free + t * n, v_start_);
    std::copy(s_.i_free + (t - 1) * n, s_.i_free + t * n, i_start_);
    for (int32_t a = record_; a > 0 && s_.spike_step[a - 1] == t - 1; --a) {
      const Membrane<R>& m = p_.membrane[s_.spike_neuron[a - 1]];
      v_start_[s_.spike_neuron[a - 1]] -= m.v_th * std::exp(-(p_.dt - s_.spike_g[a - 1]) * m.rate_mem);
    }
  }

  // A block through step t: Eq. 29 with the surrogate of Eq. 16; the bucket's adjoints go into the ring.
  void step(int64_t t, int64_t block) {
    const int64_t k0 = block * kLanes;
    const int valid = p_.valid(block);
    alignas(64) R rest[kLanes] = {}, ended[kLanes], lam[kLanes], i[kLanes];
    const R* v_free = s_.v_free + t * p_.n + k0;
    if (valid < kLanes) {
      std::copy(v_free, v_free + valid, rest);
      v_free = rest;
    }
    const R* count = count_ + k0;
    if (p_.single) {  // a neuron that has fired has no surrogate
      RANVIER_LANES
      for (int l = 0; l < kLanes; ++l) {
        const int32_t first = l < valid ? s_.first_step[k0 + l] : -1;
        ended[l] = first >= 0 && first < t ? R(0) : count[l];
      }
      count = ended;
    }
    const R *alpha = p_.alpha + k0, *beta = p_.beta + k0, *kappa = p_.kappa + k0;
    const R* v_th = p_.v_th + k0;
    R *lam_v = lam_v_ + k0, *lam_i = lam_i_ + k0;
    const R unit = p_.dt / p_.unit;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R over = std::abs(v_free[l] - v_th[l]) + 1;
      i[l] = lam_i[l];
      lam[l] = lam_v[l] + count[l] * unit / (over * over);
    }
    if constexpr (kParameters) {
      const R *v_start = v_start_ + k0, *i_start = i_start_ + k0;
      R *by_alpha = by_alpha_ + k0, *by_beta = by_beta_ + k0, *by_kappa = by_kappa_ + k0;
      R* d_v_th = sums_.d_v_th + k0;
      RANVIER_LANES
      for (int l = 0; l < kLanes; ++l) {
        d_v_th[l] -= lam[l] - lam_v[l];
        by_alpha[l] += i[l] * i_start[l];
        by_beta[l] += lam[l] * v_start[l];
        by_kappa[l] += lam[l] * i_start[l];
      }
    }
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      lam_i[l] = alpha[l] * i[l] + kappa[l] * lam[l];
      lam_v[l] = beta[l] * lam[l];
    }
    using Q = typename Quad<R>::type;
    R* bucket = p_.ring_of(ring_, block) + slot_ * kSlot;
    const Q zero = {};
    for (int l = 0; l < kLanes; l += 4) {
      const Q low = RANVIER_PICK(quad(i + l), quad(lam + l), 0, 4, 1, 5);
      const Q high = RANVIER_PICK(quad(i + l), quad(lam + l), 2, 6, 3, 7);
      quad(bucket + 4 * l) = RANVIER_PICK(low, zero, 0, 1, 4, 5);
      quad(bucket + 4 * l + 4) = RANVIER_PICK(low, zero, 2, 3, 6, 7);
      quad(bucket + 4 * l + 8) = RANVIER_PICK(high, zero, 0, 1, 4, 5);
      quad(bucket + 4 * l + 12) = RANVIER_PICK(high, zero, 2, 3, 6, 7);
    }
  }

  // From alpha, beta, kappa, 1/tau_syn and c to the time constants.
  void constants() {
    const R dt = p_.dt;
    for (int64_t k = 0; k < p_.n; ++k) {
      const Membrane<R>& m = p_.membrane[k];
      const R rate = rate_[k] - dt * (p_.alpha[k] * by_alpha_[k] + p_.kappa[k] * by_kappa_[k]);
      const R c = c_[k] + p_.alpha[k] * m.q_slope(dt) * by_kappa_[k];
      sums_.d_tau_mem[k] += (c + dt * p_.beta[k] * by_beta_[k]) * m.rate_mem * m.rate_mem;
      sums_.d_tau_syn[k] -= (c + rate) * m.rate_syn * m.rate_syn;
    }
  }

  const Problem<R>& p_;
  const Sample<R>& s_;
  const Sums<R>& sums_;
  R* ring_;
  R *lam_v_, *lam_i_, *count_;          // (padded,) adjoints behind the step, cotangent of the count
  R *v_start_, *i_start_;               // (padded,) state at the start of the step
  R *by_alpha_, *by_beta_, *by_kappa_;  // (padded,) derivatives for the constants of a step,
  R *rate_, *c_;                        // and for 1/tau_syn at fixed c, and c, through arrivals
  int64_t e_ = 0;
  int32_t record_, slot_ = 0;
  std::vector<Change> changes_;
  Tile<R> tile_;
  Batch<R> batch_;
  alignas(64) R total_[kTile * kLanes];
};

// Writes all that Sample holds of forward; records behind n_spikes stay as they are.
template <class R>
void forward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch) {
  if (p.near)
    Forward<true, R>(p, s, scratch).run();
  else
    Forward<false, R>(p, s, scratch).run();
}

// Adds the sample's gradients to `sums` and writes its dt_event.
template <class R>
void backward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch, const Sums<R>& sums) {
  if (p.near && sums.d_v_th)
    Backward<true, true, R>(p, s, scratch, sums).run();
  else if (p.near)
    Backward<true, false, R>(p, s, scratch, sums).run();
  else if (sums.d_v_th)
    Backward<false, true, R>(p, s, scratch, sums).run();
  else
    Backward<false, false, R>(p, s, scratch, sums).run();
}

}  // namespace RANVIER_NS
}  // namespace ranvier
