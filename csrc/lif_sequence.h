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
// one lane a target, and then the scattered additions or loads, one quad a target. Plain loops over lanes are
// vectorised by the compiler; the turn between lanes and quads is written out, since compilers do it badly. A phase
// reads what the one before wrote some time ago: what a processor has just written in pieces it cannot read as a whole.
//
// The exponentials of an arrival are products of one of its synapse, formed once a call, and one of its spike
// (arrival.h), so an arrival costs some ten operations, and a spike's exponentials are shared by all its targets where
// all neurons have the same time constants.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
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

// A vector register of the processor, at least four numbers (a quad).
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
template <class R>
struct Wide;
template <>
struct Wide<float> {
  static constexpr int kN = kBytes / 4;
  typedef float type __attribute__((vector_size(kBytes), may_alias));
  typedef int32_t index __attribute__((vector_size(kBytes)));
  typedef float quad __attribute__((vector_size(16), may_alias));
};
template <>
struct Wide<double> {
  static constexpr int kN = std::max(kBytes, 32) / 8;
  typedef double type __attribute__((vector_size(8 * kN), may_alias));
  typedef int64_t index __attribute__((vector_size(8 * kN)));
  typedef double quad __attribute__((vector_size(32), may_alias));
};
template <class R>
inline typename Wide<R>::type& wide(R* x) {
  return *reinterpret_cast<typename Wide<R>::type*>(x);
}
template <class R>
inline const typename Wide<R>::type& wide(const R* x) {
  return *reinterpret_cast<const typename Wide<R>::type*>(x);
}
template <class R>
inline typename Wide<R>::quad& quad(R* x) {
  return *reinterpret_cast<typename Wide<R>::quad*>(x);
}
template <class R>
inline const typename Wide<R>::quad& quad(const R* x) {
  return *reinterpret_cast<const typename Wide<R>::quad*>(x);
}

// In each four numbers of the result: numbers P0, P1, P2, P3 of the eight that a and b have there.
template <class R, int P0, int P1, int P2, int P3, int... I>
inline typename Wide<R>::type pick_(const typename Wide<R>::type& a, const typename Wide<R>::type& b,
                                    std::integer_sequence<int, I...>) {
  constexpr int kPick[] = {P0, P1, P2, P3};
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I / 4 * 4 + kPick[I % 4] % 4 + kPick[I % 4] / 4 * Wide<R>::kN)...);
#else
  return __builtin_shuffle(a, b,
                           typename Wide<R>::index{(I / 4 * 4 + kPick[I % 4] % 4 + kPick[I % 4] / 4 * Wide<R>::kN)...});
#endif
}
template <class R, int P0, int P1, int P2, int P3>
inline typename Wide<R>::type pick(const typename Wide<R>::type& a, const typename Wide<R>::type& b) {
  return pick_<R, P0, P1, P2, P3>(a, b, std::make_integer_sequence<int, Wide<R>::kN>{});
}

// Where the quad of lane l lies among those of its block: in the order in which `to_quads` makes them.
template <class R>
constexpr int quad_of(int l) {
  constexpr int n = Wide<R>::kN;
  return l / n * n * 4 + l % 4 * n + l % n / 4 * 4;
}
// Lanes a, b, q (kLanes each) to quads (a, b, q, 0) and back.
template <class R>
inline void to_quads(const R* a, const R* b, const R* q, R* quads) {
  using W = typename Wide<R>::type;
  constexpr int n = Wide<R>::kN;
  const W zero = {};
  for (int l = 0; l < kLanes; l += n) {
    const W low = pick<R, 0, 4, 1, 5>(wide(a + l), wide(b + l)), high = pick<R, 2, 6, 3, 7>(wide(a + l), wide(b + l));
    const W low_q = pick<R, 0, 4, 1, 5>(wide(q + l), zero), high_q = pick<R, 2, 6, 3, 7>(wide(q + l), zero);
    wide(quads + 4 * l) = pick<R, 0, 1, 4, 5>(low, low_q);
    wide(quads + 4 * l + n) = pick<R, 2, 3, 6, 7>(low, low_q);
    wide(quads + 4 * l + 2 * n) = pick<R, 0, 1, 4, 5>(high, high_q);
    wide(quads + 4 * l + 3 * n) = pick<R, 2, 3, 6, 7>(high, high_q);
  }
}
template <class R>
inline void from_quads(const R* quads, R* a, R* b) {
  using W = typename Wide<R>::type;
  constexpr int n = Wide<R>::kN;
  for (int l = 0; l < kLanes; l += n) {
    const R* x = quads + 4 * l;
    const W low = pick<R, 0, 4, 1, 5>(wide(x), wide(x + n)),
            high = pick<R, 0, 4, 1, 5>(wide(x + 2 * n), wide(x + 3 * n));
    wide(a + l) = pick<R, 0, 1, 4, 5>(low, high);
    wide(b + l) = pick<R, 2, 3, 6, 7>(low, high);
  }
}
template <class R>
inline void from_quads(const R* quads, R* a, R* b, R* q) {
  using W = typename Wide<R>::type;
  constexpr int n = Wide<R>::kN;
  from_quads(quads, a, b);
  for (int l = 0; l < kLanes; l += n) {
    const R* x = quads + 4 * l;
    const W low = pick<R, 2, 6, 2, 6>(wide(x), wide(x + n)),
            high = pick<R, 2, 6, 2, 6>(wide(x + 2 * n), wide(x + 3 * n));
    wide(q + l) = pick<R, 0, 1, 4, 5>(low, high);
  }
}

// Before a loop over lanes: what one turn writes no other turn reads.
#if defined(__clang__)
#define RANVIER_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define RANVIER_LANES _Pragma("GCC ivdep")
#endif

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

// A spike: the slot of its step, its offset in it, and in uniform mode exp(o / tau_syn), q(o), exp(-c o).
template <class R>
struct Sent {
  int32_t slot;
  R offset, decay, q, back;
  Sent() = default;
  Sent(const Problem<R>& p, int32_t slot, R offset) : slot(slot), offset(offset) {
    decay = exp_far(offset * p.rate[0]);
    q = q_of<false>(offset, p.c[0]);
    back = 1 / (1 + p.c[0] * q);
  }
};

// Input events that go through all blocks together; what they share is formed once.
template <class R>
struct Tile {
  int count;
  int32_t source[kTile];
  Sent<R> sent[kTile];

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
    R offset;
    split_time(s.time[e], p.dt, step, offset);
    sent[count] = Sent<R>(p, step % p.slots, offset);
    source[count] = s.channel[e];
    return step;
  }
};

// The arrivals of some spikes in some blocks.
template <Mode kMode, class R>
struct Batch {
  alignas(64) R f[kBatch * kLanes], y[kBatch * kLanes], h[kBatch * kLanes];  // arrival.h; f without the synapse's part
  alignas(64) R quads[kBatch * kSlot];                                       // moments, or their adjoints
  alignas(64) uint32_t at[kBatch * kLanes];                                  // in the block's part of the ring

  // A spike in block `block`, whose synapses begin at `synapse`, as number x of the batch. `kLeast` is 0 for inputs, 1
  // for recurrent spikes, which never enter their own step; h is written on demand.
  template <int kLeast, bool kTimes>
  void place(int x, const Problem<R>& p, const Synapses<R>& synapses, int64_t synapse, int64_t block,
             const Sent<R>& sent) {
    const R *q = synapses.q + synapse, *u = synapses.u + synapse;
    const int32_t* from = synapses.at + synapse;
    const int64_t k = block * kLanes;
    const R *alpha = p.alpha + k, *grow = p.grow + k, *reach = p.reach + k, *rate = p.rate + k, *c = p.c + k;
    R *f_ = f + x * kLanes, *y_ = y + x * kLanes, *h_ = h + x * kLanes;
    uint32_t* at_ = at + x * kLanes;
    const int32_t slot = sent.slot * kSlot, size = p.slots * kSlot;
    const R offset = sent.offset, dt = p.dt, shared_f = sent.decay, shared_q = sent.q, shared_back = sent.back;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      R decay = shared_f, q_offset = shared_q, back = shared_back;
      if (kMode != Mode::kUniform) {
        decay = exp_of<kMode == Mode::kNear>(offset * rate[l]);
        q_offset = q_of<kMode == Mode::kNear>(offset, c[l]);
        back = 1 / (1 + c[l] * q_offset);
      }
      const R first = (q[l] - q_offset) * back;
      const bool later = first <= 0 || (kLeast == 1 && from[l] < kSlot);
      y_[l] = later ? first * grow[l] + reach[l] : first;
      f_[l] = later ? decay * alpha[l] : decay;
      if (kTimes) h_[l] = u[l] - offset + (later ? dt : R(0));
      const int32_t to = slot + from[l] + (later ? kSlot : 0);
      at_[l] = static_cast<uint32_t>(to >= size ? to - size : to);
    }
  }

  // Eq. 5.
  void weigh(int x, const R* w) {
    const R *f_ = f + x * kLanes, *y_ = y + x * kLanes;
    alignas(64) R a[kLanes], b[kLanes], q[kLanes];
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) a[l] = w[l] * f_[l], b[l] = a[l] * y_[l], q[l] = b[l] * y_[l];
    to_quads(a, b, q, quads + x * kSlot);
  }

  // Adds the moments of number x to the buckets of its block.
  void scatter(int x, int valid, R* buckets) const {
    const R* from = quads + x * kSlot;
    const uint32_t* to = at + x * kLanes;
    if (valid == kLanes) {
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) quad(buckets + to[l]) += quad(from + quad_of<R>(l));
    } else {
      for (int l = 0; l < valid; ++l) quad(buckets + to[l]) += quad(from + quad_of<R>(l));
    }
  }

  // Reads the adjoints of the buckets that number x went into.
  void gather(int x, const R* adjoints) {
    R* to = quads + x * kSlot;
    const uint32_t* from = at + x * kLanes;
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) quad(to + quad_of<R>(l)) = quad(adjoints + from[l]);
  }

  // Eq. 30, of number x: adds to dd and to the lanes of `total` (dL/dt of the spike), and to dw, without the synapse's
  // part of f (`finish`).
  void slopes(int x, const Problem<R>& p, const R* w, int64_t block, R* dw, R* dd, R* total) const {
    alignas(64) R a[kLanes], b[kLanes], q[kLanes];
    from_quads(quads + x * kSlot, a, b, q);
    const R *rate = p.rate + block * kLanes, *c = p.c + block * kLanes;
    const R *f_ = f + x * kLanes, *y_ = y + x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R by_w = slope_of_weight(f_[l], y_[l], a[l], b[l], q[l]);
      const R by_x = w[l] * slope_of_time(f_[l], y_[l], rate[l], c[l], a[l], b[l], q[l]);
      dw[l] += by_w, dd[l] += by_x, total[l] += by_x;
    }
  }

  // The same for 1/tau_syn at fixed c, and for c.
  void slopes_of_constants(int x, const Problem<R>& p, const R* w, int64_t block, R* d_rate, R* d_c) const {
    alignas(64) R a[kLanes], b[kLanes], q[kLanes];
    from_quads(quads + x * kSlot, a, b, q);
    const R *c = p.c + block * kLanes, *f_ = f + x * kLanes, *y_ = y + x * kLanes, *h_ = h + x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      d_rate[l] -= h_[l] * w[l] * slope_of_weight(f_[l], y_[l], a[l], b[l], q[l]);
      d_c[l] += w[l] * slope_of_c<false>(f_[l], y_[l], h_[l], c[l], b[l], q[l]);
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

template <Mode kMode, class R>
class Forward {
 public:
  Forward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch) : p_(p), s_(s) {
    ring_ = scratch.ring.of(p.ring_size());
    R** const arrays[] = {&v_, &i_, &old_v_, &old_i_};
    R* const memory = scratch.state.of(4 * p.padded);
    for (int x = 0; x < 4; ++x) *arrays[x] = memory + x * p.padded;
    look_ = scratch.look.of(p.padded);
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
      std::swap(v_, old_v_);
      std::swap(i_, old_i_);
      looks_.clear();
      for (int64_t b = 0; b < p_.blocks; ++b)
        if (step(b)) looks_.push_back(b);
      if (s_.v_free) std::copy(v_, v_ + n, s_.v_free + t * n);
      if (s_.i_free) std::copy(i_, i_ + n, s_.i_free + t * n);
      for (const int64_t b : looks_) look(t, b);
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
            batch_.template place<0, false>(x, p_, p_.in, at, b, tile_.sent[x0 + x]);
            batch_.weigh(x, p_.in.w + at);
          }
          for (int x = 0; x < size; ++x) batch_.scatter(x, p_.valid(b), p_.ring_of(ring_, b));
        }
      e_ += tile_.count;
    } while (tile_.count == kTile);
  }

  // A spike of neuron k in the step that is being computed.
  void spike(int64_t k, R g) {
    const Sent<R> sent(p_, slot_, g);
    for (int64_t b0 = 0; b0 < p_.blocks; b0 += kBatch) {
      const int size = static_cast<int>(std::min<int64_t>(kBatch, p_.blocks - b0));
      for (int x = 0; x < size; ++x) {
        const int64_t at = p_.rec.place(b0 + x, k);
        batch_.template place<1, false>(x, p_, p_.rec, at, b0 + x, sent);
        batch_.weigh(x, p_.rec.w + at);
      }
      for (int x = 0; x < size; ++x) batch_.scatter(x, p_.valid(b0 + x), p_.ring_of(ring_, b0 + x));
    }
  }

  // A block by Eq. 6; returns whether some neuron is worth a look.
  bool step(int64_t block) {
    const int64_t k = block * kLanes;
    alignas(64) R ji[kLanes], jv[kLanes];
    from_quads(p_.ring_of(ring_, block) + slot_ * kSlot, ji, jv);
    const R *alpha = p_.alpha + k, *beta = p_.beta + k, *kappa = p_.kappa + k, *v_th = p_.v_th + k;
    const R *back_v = p_.back_v + k, *back_i = p_.back_i + k, *back_vi = p_.back_vi + k, *rate_mem = p_.rate_mem + k;
    const R *v = old_v_ + k, *i = old_i_ + k;
    R *v_new = v_ + k, *i_new = i_ + k;
    int32_t* look = look_ + k;
    const R dt = p_.dt;
    int32_t any = 0;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R v_free = v[l] * beta[l] + i[l] * kappa[l], i_free = i[l] * alpha[l];
      const R v_end = v_free + jv[l], i_end = i_free + ji[l];
      v_new[l] = v_end, i_new[l] = i_end;
      const R v_back = v_end * back_v[l] + i_end * back_vi[l], i_back = i_end * back_i[l];
      // A bound on what `may_fire` computes: a flow that rises at one end of the step and falls at the other stays
      // below its start plus its first slope times dt.
      const R rise = i[l] - v[l] * rate_mem[l], rise_back = i_back - v_back * rate_mem[l];
      const bool bends = (rise > 0) & (i_free - v_free * rate_mem[l] < 0);
      const R ahead = bends ? v[l] + rise * dt : v_free;
      const R behind = rise_back > 0 ? v_back + rise_back * dt : v_back;
      const bool falls = i_end - v_end * rate_mem[l] < 0;
      look[l] = (v_end >= v_th[l]) | (v[l] >= v_th[l]) | (ahead >= v_th[l]) | (falls & (behind >= v_th[l]));
      any |= look[l];
    }
    return any != 0;
  }

  // The neurons of a block that may fire in step t.
  void look(int64_t t, int64_t block) {
    for (int64_t k = block * kLanes; k < block * kLanes + p_.valid(block); ++k) {
      if (!look_[k] || (p_.single && s_.first_step[k] >= 0)) continue;
      const Membrane<R>& m = p_.membrane[k];
      if (!may_fire(old_v_[k], old_i_[k], v_[k], i_[k], m, p_.dt)) continue;
      const R* bucket = p_.bucket(ring_, slot_, k);
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
  int32_t* look_;                // (padded,)
  std::vector<int64_t> looks_;   // blocks with such neurons
  int64_t e_ = 0, last_ = 0;
  int32_t slot_ = 0, recorded_ = 0, lost_ = 0;
  Tile<R> tile_;
  Batch<kMode, R> batch_;
};

template <Mode kMode, bool kParameters, class R>
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
        R* bucket = p_.bucket(ring_, slot_, x.k);
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
    const Sent<R> sent(p_, slot_, g);
    alignas(64) R total[kLanes] = {};
    for (int64_t b0 = 0; b0 < p_.blocks; b0 += kBatch) {
      const int size = static_cast<int>(std::min<int64_t>(kBatch, p_.blocks - b0));
      for (int x = 0; x < size; ++x)
        batch_.template place<1, kParameters>(x, p_, p_.rec, p_.rec.place(b0 + x, k), b0 + x, sent);
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
          const int32_t* source = tile_.source + x0;
          for (int x = 0; x < size; ++x)
            batch_.template place<0, kParameters>(x, p_, p_.in, p_.in.place(b, source[x]), b, tile_.sent[x0 + x]);
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
      batch_.slopes_of_constants(x, p_, synapses.w + synapse, block, rate_ + block * kLanes, c_ + block * kLanes);
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
    alignas(64) R rest[kLanes] = {}, zero[kLanes] = {}, ended[kLanes], lam[kLanes], i[kLanes];
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
    to_quads(i, lam, zero, p_.ring_of(ring_, block) + slot_ * kSlot);
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
  Batch<kMode, R> batch_;
  alignas(64) R total_[kTile * kLanes];
};

// Writes all that Sample holds of forward; records behind n_spikes stay as they are.
template <class R>
void forward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch) {
  switch (p.mode) {
    case Mode::kUniform:
      return Forward<Mode::kUniform, R>(p, s, scratch).run();
    case Mode::kNear:
      return Forward<Mode::kNear, R>(p, s, scratch).run();
    case Mode::kFar:
      return Forward<Mode::kFar, R>(p, s, scratch).run();
  }
}

// Adds the sample's gradients to `sums` and writes its dt_event; when all samples are done, `finish`.
template <bool kParameters, class R>
void backward_(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch, const Sums<R>& sums) {
  switch (p.mode) {
    case Mode::kUniform:
      return Backward<Mode::kUniform, kParameters, R>(p, s, scratch, sums).run();
    case Mode::kNear:
      return Backward<Mode::kNear, kParameters, R>(p, s, scratch, sums).run();
    case Mode::kFar:
      return Backward<Mode::kFar, kParameters, R>(p, s, scratch, sums).run();
  }
}
template <class R>
void backward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch, const Sums<R>& sums) {
  if (sums.d_v_th)
    backward_<true>(p, s, scratch, sums);
  else
    backward_<false>(p, s, scratch, sums);
}

// The synapse's part of dL/dw, which is the same for all its spikes.
template <class R>
void finish(const Problem<R>& p, const Sums<R>& sums) {
  const auto scale = [&p](const Synapses<R>& synapses, R* dw) {
    for (int64_t b = 0; b < p.blocks; ++b)
      for (int64_t j = 0; j < synapses.n_sources; ++j) {
        const R* decay = synapses.decay + synapses.place(b, j);
        R* to = dw + j * p.padded + b * kLanes;
        RANVIER_LANES
        for (int l = 0; l < kLanes; ++l) to[l] *= decay[l];
      }
  };
  scale(p.in, sums.dw_in);
  if (p.recurrent) scale(p.rec, sums.dw_rec);
}

}  // namespace RANVIER_NS
}  // namespace ranvier
