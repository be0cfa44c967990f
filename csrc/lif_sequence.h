// One sample through the whole sequence, forward and backward (docs/equations.md: 5 to 16, and the adjoint, 26 to 31).
//
// Shapes: M inputs, N neurons, T steps, E event slots; weights and delays (M, N) and (N, N), source first.
//
// A block of neurons keeps the buckets of the steps ahead in a ring, (block, slot, quads): JI, JV, JQ, 0 of one bucket
// are one quad, added in one instruction. Time goes in chunks of kChunk steps: first the input events of the chunk are
// delivered, block by block, so that the buckets they touch and a block's synapses stay in the caches nearest by; then
// the chunk is stepped through, and spikes are delivered as they come. The ring covers a chunk and the longest delay,
// so nothing wraps onto itself, and what arrives behind the end of the run falls into slots that nobody reads. The walk
// back is the same with the ring holding the buckets' adjoints: a chunk of steps, then the derivatives of its input
// events, whose buckets all lie ahead.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "lif_arrivals.h"

namespace ranvier {
namespace RANVIER_NS {

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
    look_ = scratch.look.of(p.padded + p.blocks), looks_ = look_ + p.padded;
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
      n_looks_ = 0;
      for (int64_t b = 0; b < p_.blocks; ++b)
        if (step(b)) looks_[n_looks_++] = static_cast<int32_t>(b);
      if (s_.v_free) std::copy(v_, v_ + n, s_.v_free + t * n);
      if (s_.i_free) std::copy(i_, i_ + n, s_.i_free + t * n);
      for (int32_t x = 0; x < n_looks_; ++x) look(t, looks_[x]);
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
  RANVIER_APART void inputs(int64_t end) {
    const Problem<R>& p = p_;
    const int32_t slots = p.slots;
    const R dt = p.dt;
    do {
      tile_.ahead(p_, s_, e_, last_, end);
      const int count = tile_.count;
      for (int64_t b = 0; b < p_.blocks; ++b) {
        const Targets<R> block(p, p.in, b, 0);
        R* const buckets = p.ring_of(ring_, b);
        const int valid = p.valid(b);
        for (int x = 0; x < count + kBatch; ++x) {
          if (x >= kBatch) batch_.scatter(x % kBatch, valid, buckets);
          if (x < count) batch_.template send<0>(x % kBatch, slots, dt, block.of(tile_.source[x]), tile_[x]);
        }
      }
      e_ += tile_.count;
    } while (tile_.count == kTile);
  }

  // A spike of neuron k in the step that is being computed.
  void spike(int64_t k, R g) {
    const auto sent = Sent<R>::of(p_, slot_, g);
    for (int64_t b0 = 0; b0 < p_.blocks; b0 += kBatch) {
      const int size = static_cast<int>(std::min<int64_t>(kBatch, p_.blocks - b0));
      for (int x = 0; x < size; ++x) {
        const Targets<R> to(p_, p_.rec, b0 + x, k);
        batch_.template send<1>(x, p_.slots, p_.dt, to, sent);
      }
      for (int x = 0; x < size; ++x) batch_.scatter(x, p_.valid(b0 + x), p_.ring_of(ring_, b0 + x));
    }
  }

  // A block by Eq. 6; returns whether some neuron is worth a look.
  bool step(int64_t block) {
    const int64_t k = block * kLanes;
    alignas(64) R ji[kLanes], jv[kLanes];
    from_quads(p_.ring_of(ring_, block) + slot_ * kSlot, ji, jv);
    const R *of = p_.of(block), *alpha = of + kAlpha, *beta = of + kBeta, *kappa = of + kKappa, *v_th = of + kTheta;
    const R *back_v = of + kBackV, *back_i = of + kBackI, *back_vi = of + kBackVI, *rate_mem = of + kRateMem;
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
      look[l] = worth_a_look(v[l], i[l], v_end, i_end, v_free, i_free, v_back, i_back, rate_mem[l], dt, v_th[l]);
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
      R g[kSpikesPerStep], v_end = v_[k];
      bool still;
      const int fired =
          spikes_between(from[0], from[1], from[2], from[3], from[4], i_[k], m, p_.dt, p_.single, g, v_end, still);
      if (!fired) continue;
      for (int f = 0; f < fired; ++f) {
        record(t, k, g[f], from);
        if (p_.recurrent) spike(k, g[f]);
      }
      v_[k] = v_end;
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
  int32_t *look_, *looks_;       // (padded,) neurons worth a look; (blocks,) blocks that have one
  int64_t e_ = 0, last_ = 0;
  int32_t slot_ = 0, n_looks_ = 0, recorded_ = 0, lost_ = 0;
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
    unit_ = p.dt / p.unit;
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
      if (t % kChunk == 0) s_.dt_event ? inputs<true>(t) : inputs<false>(t);
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
      spike_jacobian<kSlopes>(s_.spike_state + int64_t(a) * 5, s_.spike_g + a, m, dt, static_cast<int>(b - a), slopes);
      Change change{k, {}};
      for (int32_t f = a; f < b; ++f) {
        const R* slope = slopes + (f - a) * kSlopes;
        const R rest = dt - s_.spike_g[f], left = m.grow_mem(-rest);  // of the reset, at the end of the step
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
  RANVIER_APART R spike(int64_t k, R g) {
    const auto sent = Sent<R>::of(p_, slot_, g);
    alignas(64) R total[kLanes] = {};
    for (int64_t b0 = 0; b0 < p_.blocks; b0 += kBatch) {
      const int size = static_cast<int>(std::min<int64_t>(kBatch, p_.blocks - b0));
      for (int x = 0; x < size; ++x)
        batch_.template place<1, kParameters>(x, p_.slots, p_.dt, {p_, p_.rec, b0 + x, k}, sent);
      for (int x = 0; x < size; ++x) {
        const int64_t block = b0 + x, at = k * p_.padded + block * kLanes;
        const Targets<R> to(p_, p_.rec, block, k);
        const R* const adjoints = p_.ring_of(ring_, block);
        batch_.template slopes<true>(x, to, adjoints, sums_.dw_rec + at, sums_.dd_rec + at, total);
        if (kParameters) batch_.slopes_of_constants(x, to, adjoints, rate_ + block * kLanes, c_ + block * kLanes);
      }
    }
    return sum_of_lanes(total);
  }

  // Input events of the steps from `begin` on.
  template <bool kTimes>
  RANVIER_APART void inputs(int64_t begin) {
    const Problem<R>& p = p_;
    const int32_t slots = p.slots;
    const int64_t padded = p.padded;
    const R dt = p.dt;
    do {
      tile_.back(p_, s_, e_, begin);
      if (kTimes) std::fill(total_, total_ + tile_.count * kLanes, R(0));
      const int count = tile_.count;
      const int32_t* source = tile_.source;
      for (int64_t b = 0; b < p.blocks; ++b) {
        const Targets<R> block(p, p.in, b, 0);
        const R* const adjoints = p.ring_of(ring_, b);
        R *const dw = sums_.dw_in + b * kLanes, *const dd = sums_.dd_in + b * kLanes;
        for (int x = 0; x < count + kBatch; ++x) {
          if (x >= kBatch) {
            const int64_t j = source[x - kBatch];
            const Targets<R> to = block.of(j);
            R* const total = total_ + (x - kBatch) * kLanes;
            batch_.template slopes<kTimes>(x % kBatch, to, adjoints, dw + j * padded, dd + j * padded, total);
            if (kParameters) batch_.slopes_of_constants(x % kBatch, to, adjoints, rate_ + b * kLanes, c_ + b * kLanes);
          }
          if (x + kBatch < count) block.of(source[x + kBatch]).fetch_places();
          if (x < count) {
            const int64_t j = source[x];
            const Targets<R> to = block.of(j);
            fetch(to.near), fetch(dw + j * padded), fetch(dd + j * padded);
            batch_.template place<0, kParameters>(x % kBatch, slots, dt, to, tile_[x]);
          }
        }
      }
      if (kTimes)
        for (int x = 0; x < tile_.count; ++x) s_.dt_event[e_ - tile_.count + x] = sum_of_lanes(total_ + x * kLanes);
      e_ -= tile_.count;
    } while (tile_.count == kTile);
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
  RANVIER_APART void step(int64_t t, int64_t block) {
    const int64_t k0 = block * kLanes;
    const int valid = p_.valid(block);
    alignas(64) R rest[kLanes] = {}, zero[kLanes] = {}, ended[kLanes], lam[kLanes], i[kLanes];
    const R* v_free = s_.v_free + t * p_.n + k0;
    // behind the row lie the next ones, which lanes without a neuron may read: their threshold is infinite
    if (t * p_.n + k0 + kLanes > p_.n_steps * p_.n) {
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
    const R *of = p_.of(block), *alpha = of + kAlpha, *beta = of + kBeta, *kappa = of + kKappa, *v_th = of + kTheta;
    R *lam_v = lam_v_ + k0, *lam_i = lam_i_ + k0;
    const R unit = unit_;
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
      const R* of = p_.of(k / kLanes) + k % kLanes;
      const R rate = rate_[k] - dt * (of[kAlpha] * by_alpha_[k] + of[kKappa] * by_kappa_[k]);
      const R c = c_[k] + of[kAlpha] * m.q_slope(dt) * by_kappa_[k];
      sums_.d_tau_mem[k] += (c + dt * of[kBeta] * by_beta_[k]) * m.rate_mem * m.rate_mem;
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
  R unit_;
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
        const R* decay = synapses.far + 2 * synapses.place(b, j);
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
