// The arrivals of spikes at whole blocks of neurons, forward and backward, many at a time.
//
// Two phases for a few spikes and blocks at a time (Batch): where and with what they arrive, one lane a target, and
// then the scattered additions or loads, one quad a target. A phase reads what the one before wrote some time ago: what
// a processor has just written in pieces it cannot read as a whole.
//
// The exponentials of an arrival are products of one of its synapse, formed once a call, and one of its spike. With o
// the offset of the spike in its step and u the time from an arrival at the first instant of a step to the end of the
// bucket it falls into, h = u - o, and where that is not positive the arrival is due one step later:
//
//     exp(-h / tau_syn) = exp(-u / tau_syn) exp(o / tau_syn)        one step later: times exp(-dt / tau_syn)
//     q(h) = (q(u) - q(o)) exp(-c o)                                one step later: times exp(c dt), plus q(dt)
//
// so an arrival costs some ten operations, and a spike's exponentials are shared by all its targets where all neurons
// have the same time constants.
#pragma once
#include <algorithm>

#include "lif_problem.h"

namespace ranvier {
namespace RANVIER_NS {

constexpr int kTile = 256;  // input events that go through all blocks together
constexpr int kBatch = 8;   // blocks of arrivals between two phases

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

}  // namespace RANVIER_NS
}  // namespace ranvier
