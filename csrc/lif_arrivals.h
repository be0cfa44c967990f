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

// A spike: the slot of its step, its offset in it, and for uniform mode exp(o / tau_syn), q(o), exp(-c o).
template <class R>
struct Sent {
  int32_t slot;
  R offset, decay, q, back;

  static RANVIER_LANE void form(R rate, R c, R offset, R& decay, R& q, R& back) {
    decay = exp_far(offset * rate);
    q = q_of<false>(offset, c);
    back = 1 / (1 + c * q);
  }
  static Sent of(const Problem<R>& p, int32_t slot, R offset) {
    Sent s{slot, offset, 0, 0, 0};
    form(p.constants[kRate], p.constants[kC], offset, s.decay, s.q, s.back);
    return s;
  }
};

// Input events that go through all blocks together; what they share is formed once.
template <class R>
class Tile {
 public:
  int count;
  int32_t source[kTile];

  Sent<R> operator[](int x) const { return {slot_[x], offset_[x], decay_[x], q_[x], back_[x]}; }

  // Events of steps before `end`, from event e on.
  void ahead(const Problem<R>& p, const Sample<R>& s, int64_t e, int64_t last, int64_t end) {
    split(p, s, e, static_cast<int>(std::min<int64_t>(kTile, last - e)));
    int kept = 0;
    while (kept < count && step_[kept] < end) ++kept;
    keep(p, s, e, 0, kept);
  }
  // Events of steps from `begin` on, up to event e - 1.
  void back(const Problem<R>& p, const Sample<R>& s, int64_t e, int64_t begin) {
    const int64_t first = std::max<int64_t>(0, e - kTile);
    split(p, s, first, static_cast<int>(e - first));
    int left = count;
    while (left > 0 && step_[left - 1] >= begin) --left;
    keep(p, s, first + left, left, count - left);
  }

 private:
  void split(const Problem<R>& p, const Sample<R>& s, int64_t e, int size) {
    const R* time = s.time + e;
    const R dt = p.dt;
    count = size;
    RANVIER_LANES
    for (int x = 0; x < size; ++x) split_time(time[x], dt, step_[x], offset_[x]);
  }
  // Keeps `size` events, those from number `from` of the tile and `e` of the sample on.
  void keep(const Problem<R>& p, const Sample<R>& s, int64_t e, int from, int size) {
    count = size;
    for (int x = 0; x < size; ++x) {
      slot_[x] = step_[from + x] % p.slots;
      offset_[x] = offset_[from + x];
      source[x] = s.channel[e + x];
    }
    const R rate = p.constants[kRate], c = p.constants[kC];
    RANVIER_LANES
    for (int x = 0; x < size; ++x) Sent<R>::form(rate, c, offset_[x], decay_[x], q_[x], back_[x]);
  }

  int32_t step_[kTile], slot_[kTile];
  R offset_[kTile], decay_[kTile], q_[kTile], back_[kTile];
};

// The synapses of a source in a block, and what the block knows of its neurons.
template <class R>
struct Targets {
  const R *near, *far, *constant;
  const int32_t* at;
  Targets(const Problem<R>& p, const Synapses<R>& synapses, int64_t block, int64_t source) {
    const int64_t place = synapses.place(block, source);
    near = synapses.near + 2 * place, far = synapses.far + 2 * place, at = synapses.at + place;
    constant = p.of(block);
  }
  // The synapses of source j, from those of source 0.
  Targets of(int64_t j) const {
    Targets to = *this;
    to.near += 2 * j * kLanes, to.far += 2 * j * kLanes, to.at += j * kLanes;
    return to;
  }
  // What `land` reads, but far.
  void fetch_places() const { fetch(near + kLanes), fetch(at); }
};

// The arrivals of some spikes in some blocks.
template <Mode kMode, class R>
class Batch {
 public:
  // A spike as number x of the batch: its moments (Eq. 5), and where in the block's part of the ring they go. `kLeast`
  // is 0 for inputs, 1 for recurrent spikes, which never enter their own step.
  template <int kLeast>
  void send(int x, int32_t slots, R dt, const Targets<R> to, const Sent<R> sent) {
    alignas(64) R a[kLanes], b[kLanes], q[kLanes];
    uint32_t* const at = at_ + x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      R f, y, h;
      int32_t place;
      land<kLeast>(to, sent, slots, dt, l, f, y, h, place);
      at[l] = static_cast<uint32_t>(place);
      a[l] = to.near[l] * f, b[l] = a[l] * y, q[l] = b[l] * y;
    }
    to_quads(a, b, q, quads_ + x * kSlot);
  }
  // Adds the moments of number x to its buckets in the block's part of the ring.
  void scatter(int x, int valid, R* buckets) const {
    const R* from = quads_ + x * kSlot;
    const uint32_t* at = at_ + x * kLanes;
    if (valid == kLanes) {
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) quad(buckets + at[l]) += quad(from + quad_of<R>(l));
    } else {
      for (int l = 0; l < valid; ++l) quad(buckets + at[l]) += quad(from + quad_of<R>(l));
    }
  }

  // Backwards: where the buckets of a spike lie, and what belongs to the spike in Eq. 30; h on demand.
  template <int kLeast, bool kTimes>
  void place(int x, int32_t slots, R dt, const Targets<R> to, const Sent<R> sent) {
    R *f = f_ + x * kLanes, *y = y_ + x * kLanes, *h = h_ + x * kLanes;
    uint32_t* const at = at_ + x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      R here;
      int32_t place;
      land<kLeast>(to, sent, slots, dt, l, f[l], y[l], here, place);
      if (kTimes) h[l] = here;
      at[l] = static_cast<uint32_t>(place);
    }
  }
  // Eq. 30: adds to dd, to dw, without the synapse's part of f (`finish`), and on demand to the lanes of `total`, dL/dt
  // of the spike.
  template <bool kTotal>
  void slopes(int x, const Targets<R> to, const R* adjoints, R* dw, R* dd, R* total) const {
    alignas(64) R a[kLanes], b[kLanes], q[kLanes];
    from_quads(adjoints, at_ + x * kLanes, a, b, q);
    const R *f = f_ + x * kLanes, *y = y_ + x * kLanes;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      const R by_x =
          to.near[l] * slope_of_time(f[l], y[l], to.constant[kRate + l], to.constant[kC + l], a[l], b[l], q[l]);
      dw[l] += slope_of_weight(f[l], y[l], a[l], b[l], q[l]);
      dd[l] += by_x;
      if (kTotal) total[l] += by_x;
    }
  }
  // The same for 1/tau_syn at fixed c, and for c.
  void slopes_of_constants(int x, const Targets<R> to, const R* adjoints, R* d_rate, R* d_c) const {
    alignas(64) R a[kLanes], b[kLanes], q[kLanes];
    from_quads(adjoints, at_ + x * kLanes, a, b, q);
    const R *f = f_ + x * kLanes, *y = y_ + x * kLanes, *h = h_ + x * kLanes;
    const R *w = to.near, *c = to.constant + kC;
    RANVIER_LANES
    for (int l = 0; l < kLanes; ++l) {
      d_rate[l] -= h[l] * w[l] * slope_of_weight(f[l], y[l], a[l], b[l], q[l]);
      d_c[l] += w[l] * slope_of_c<false>(f[l], y[l], h[l], c[l], b[l], q[l]);
    }
  }

 private:
  template <int kLeast>
  static RANVIER_LANE void land(const Targets<R>& to, const Sent<R>& sent, int32_t slots, R dt, int l, R& f, R& y, R& h,
                                int32_t& place) {
    R decay = sent.decay, q = sent.q, back = sent.back;
    if (kMode != Mode::kUniform) {
      decay = exp_of<kMode == Mode::kNear>(sent.offset * to.constant[kRate + l]);
      q = q_of<kMode == Mode::kNear>(sent.offset, to.constant[kC + l]);
      back = 1 / (1 + to.constant[kC + l] * q);
    }
    const R first = (to.near[kLanes + l] - q) * back;
    const bool later = first <= 0 || (kLeast == 1 && to.at[l] < kSlot);
    y = later ? first * to.constant[kGrow + l] + to.constant[kReach + l] : first;
    f = later ? decay * to.constant[kAlpha + l] : decay;
    h = to.far[kLanes + l] - sent.offset + (later ? dt : R(0));
    place = sent.slot * kSlot + to.at[l] + (later ? kSlot : 0);
    place = place >= slots * kSlot ? place - slots * kSlot : place;
  }

  alignas(64) R f_[kBatch * kLanes], y_[kBatch * kLanes], h_[kBatch * kLanes];  // Eq. 30; f without the synapse's part
  alignas(64) R quads_[kBatch * kSlot];                                         // moments, or their adjoints
  alignas(64) uint32_t at_[kBatch * kLanes];                                    // where in the block's part of the ring
};

}  // namespace RANVIER_NS
}  // namespace ranvier
