// One sample through the whole sequence, forward and backward (docs/equations.md: 5 to 16 and the adjoint).
//
// Shapes: M inputs, N neurons, T steps, E event slots; weights and delays (M, N) and (N, N), source first. A bucket is
// four numbers (JI, JV, JQ, unused): one aligned vector add an arrival. All T buckets of a sample are kept, so a delay
// may be as long as the run and nothing wraps; the backward walk keeps their adjoints in the same shape.
//
// Work a sample: an arrival costs two exponentials (vectorised over the targets of a source) and one scattered vector
// add, forward, and one scattered load, backward; a step costs 8 operations a neuron; root finding happens at spikes.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "lif_call.h"
#include "lif_step.h"

namespace ranvier {
namespace RANVIER_NS {

// A parameter set and what follows from it, made once a call; memory is kept from call to call.
template <class R>
struct Problem {
  int64_t n_inputs, n, n_steps, n_events, capacity;
  R dt, unit;
  bool recurrent, single;
  const R *w_in, *w_rec;                       // (M, N), (N, N)
  const R *tau_mem, *tau_syn, *v_th;           // (N,)
  std::vector<int32_t> d_in_step, d_rec_step;  // whole steps of the delays
  std::vector<R> d_in_offset, d_rec_offset;    // the rest [ms]
  std::vector<R> c, alpha, beta, kappa;        // (N,) constants of a step

  Membrane<R> membrane(int64_t k) const { return {tau_mem[k], tau_syn[k], v_th[k]}; }

  void prepare(const Call<R>& call, int64_t set) {
    n_inputs = call.n_inputs, n = call.n, n_steps = call.n_steps, n_events = call.n_events, capacity = call.capacity;
    dt = call.dt, unit = call.unit, recurrent = call.recurrent, single = call.single;
    const int64_t in = n_inputs * n, rec = recurrent ? n * n : 0;
    w_in = call.w_in + set * in, w_rec = call.w_rec + set * rec;
    tau_mem = call.tau_mem + set * n, tau_syn = call.tau_syn + set * n, v_th = call.v_th + set * n;
    split(call.d_in + set * in, in, d_in_step, d_in_offset);
    split(call.d_rec + set * rec, rec, d_rec_step, d_rec_offset);
    c.resize(n), alpha.resize(n), beta.resize(n), kappa.resize(n);
    for (int64_t k = 0; k < n; ++k) {
      c[k] = 1 / tau_syn[k] - 1 / tau_mem[k];
      alpha[k] = std::exp(-dt / tau_syn[k]);
      beta[k] = std::exp(-dt / tau_mem[k]);
      kappa[k] = alpha[k] * membrane(k).q(dt);
    }
  }

  void split(const R* d, int64_t size, std::vector<int32_t>& step, std::vector<R>& offset) const {
    step.resize(size), offset.resize(size);
    for (int64_t k = 0; k < size; ++k) {
      const R steps = std::floor(d[k] / dt);
      step[k] = static_cast<int32_t>(steps);
      offset[k] = d[k] - steps * dt;
    }
  }
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
};

// Where backward adds the gradients of a parameter set.
template <class R>
struct Sums {
  R *dw_in, *dd_in;                   // (M, N)
  R *dw_rec, *dd_rec;                 // (N, N)
  R *d_tau_mem, *d_tau_syn, *d_v_th;  // (N,)
};

// What a thread computes in, kept from sample to sample.
template <class R>
struct Scratch {
  std::vector<R> buckets;  // (T, N, 4)
};

// exp(x) to rounding, in a form that compilers vectorise: x = k log 2 + r, a polynomial in r, the exponent set by hand.
inline float exp_v(float x) {
  x = x < -80.f ? -80.f : (x > 80.f ? 80.f : x);
  const float big = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float z = x * 1.44269504088896341f + big;
  const float k = z - big;
  const float r = (x - k * 0.693145751953125f) - k * 1.42860677e-6f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const int32_t e = (static_cast<int32_t>(k) + 127) << 23;
  float scale;
  std::memcpy(&scale, &e, 4);
  return p * scale;
}
inline double exp_v(double x) {
  x = x < -700. ? -700. : (x > 700. ? 700. : x);
  const double big = 6755399441055744.;
  const double z = x * 1.4426950408889634 + big;
  const double k = z - big;
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double p = 1. / 6227020800.;
  const double f[] = {1. / 479001600., 1. / 39916800., 1. / 3628800., 1. / 362880., 1. / 40320., 1. / 5040., 1. / 720.,
                      1. / 120.,       1. / 24.,       1. / 6.,       .5,           1.,          1.};
  for (double a : f) p = p * r + a;
  int64_t bits;
  std::memcpy(&bits, &z, 8);
  int64_t zero;
  std::memcpy(&zero, &big, 8);
  const int64_t e = (bits - zero + 1023) << 52;
  double scale;
  std::memcpy(&scale, &e, 8);
  return p * scale;
}

// q(h) vectorised (Eq. 2); a series where c h is so small that the difference would lose digits.
template <class R>
inline R q_v(R h, R c) {
  const R x = c * h;
  const R series = h * (1 + x * (R(0.5) + x * (R(1) / 6 + x * (R(1) / 24 + x * (R(1) / 120 + x * (R(1) / 720))))));
  const bool near = x < R(0.02) && x > R(-0.02);
  const R safe = near ? R(1) : c;
  const R direct = (exp_v(x) - 1) / safe;
  return near ? series : direct;
}

// Where an arrival falls and how long before the end of its bucket, for all targets of one source.
template <class R>
struct Row {
  std::vector<int32_t> bucket;
  std::vector<R> decay, y, h;
  explicit Row(int64_t n) : bucket(n), decay(n), y(n), h(n) {}

  // A spike at `offset` in step `step`; `least` is 0 for inputs, 1 for recurrent spikes, which never enter their own
  // step.
  void fill(const Problem<R>& p, const int32_t* d_step, const R* d_offset, int32_t step, R offset, int32_t least) {
    const R dt = p.dt;
    const int64_t n = p.n;
    int32_t* __restrict bucket_ = bucket.data();
    R* __restrict decay_ = decay.data(), * __restrict y_ = y.data();
    const R* __restrict tau_syn = p.tau_syn, * __restrict c = p.c.data();
    for (int64_t k = 0; k < n; ++k) {
      const R x = offset + d_offset[k];
      const int32_t carry = (x >= dt ? 1 : 0) + (x >= 2 * dt ? 1 : 0);
      int32_t ahead = d_step[k] + carry;
      ahead = ahead < least ? least : ahead;
      const R h_k = static_cast<R>(ahead - d_step[k] + 1) * dt - x;
      bucket_[k] = step + ahead;
      decay_[k] = exp_v(-h_k / tau_syn[k]);
      y_[k] = q_v(h_k, c[k]);
    }
  }
};

template <class R>
void deliver(const Problem<R>& p, const Row<R>& row, const R* w, R* buckets) {
  const int64_t n = p.n;
  const int32_t last = static_cast<int32_t>(p.n_steps);
  for (int64_t k = 0; k < n; ++k) {
    if (row.bucket[k] >= last) continue;
    R* j = buckets + (row.bucket[k] * n + k) * 4;
    const R a = w[k] * row.decay[k], b = a * row.y[k];
    j[0] += a;
    j[1] += b;
    j[2] += b * row.y[k];
  }
}

// Derivatives of what one spike delivers: adds to dL/dw and dL/dd, returns dL/dt of the spike.
template <class R>
R collect(const Problem<R>& p, const Row<R>& row, const R* w, const R* adjoint, R* dw, R* dd) {
  const int64_t n = p.n;
  const int32_t last = static_cast<int32_t>(p.n_steps);
  R total = 0;
  for (int64_t k = 0; k < n; ++k) {
    if (row.bucket[k] >= last) continue;
    const R* l = adjoint + (row.bucket[k] * n + k) * 4;
    const R y = row.y[k], decay = row.decay[k], rate = 1 / p.tau_syn[k];
    dw[k] += decay * (l[0] + y * (l[1] + y * l[2]));
    const R grow = 1 + p.c[k] * y;  // dq/dh
    const R dx = w[k] * decay * (l[0] * rate + l[1] * (y * rate - grow) + l[2] * y * (y * rate - 2 * grow));
    dd[k] += dx;
    total += dx;
  }
  return total;
}

template <class R>
void split_time(R time, R dt, int32_t& step, R& offset) {
  const R steps = std::floor(time / dt);
  step = static_cast<int32_t>(steps);
  offset = time - steps * dt;
}

// Writes all that Sample holds of forward; records behind n_spikes stay as they are.
template <class R>
void forward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch) {
  scratch.buckets.assign(p.n_steps * p.n * 4, R(0));
  R* const buckets = scratch.buckets.data();
  const int64_t n = p.n;
  const R dt = p.dt, limit = static_cast<R>(p.n_steps) * dt;
  Row<R> row(n);
  for (int64_t e = 0; e < p.n_events; ++e) {
    if (!(s.time[e] < limit)) break;  // sorted, padded with +inf
    int32_t step;
    R offset;
    split_time(s.time[e], dt, step, offset);
    const int64_t at = int64_t(s.channel[e]) * n;
    row.fill(p, p.d_in_step.data() + at, p.d_in_offset.data() + at, step, offset, 0);
    deliver(p, row, p.w_in + at, buckets);
  }
  std::vector<R> v(n, R(0)), i(n, R(0)), v_next(n), i_next(n), free(n);
  std::vector<uint8_t> look(n);
  std::vector<R> back_v(n), back_i(n), back_vi(n);
  for (int64_t k = 0; k < n; ++k) {
    s.count[k] = 0;
    s.first_offset[k] = 0;
    s.first_step[k] = -1;
    back_v[k] = 1 / p.beta[k];
    back_i[k] = 1 / p.alpha[k];
    back_vi[k] = back_i[k] * p.membrane(k).q(-dt);
  }
  int32_t recorded = 0, lost = 0;
  for (int64_t t = 0; t < p.n_steps; ++t) {
    const R* j = buckets + t * n * 4;
    R* v_free = s.v_free ? s.v_free + t * n : free.data();
    for (int64_t k = 0; k < n; ++k) {
      const R v_f = v[k] * p.beta[k] + i[k] * p.kappa[k] + j[4 * k + 1];
      const R i_f = i[k] * p.alpha[k] + j[4 * k];
      v_free[k] = v_f;
      v_next[k] = v_f;
      i_next[k] = i_f;
      // a bound on what `may_fire` computes: no flow rises faster than its largest current
      const R v_b = v_f * back_v[k] + i_f * back_vi[k], i_b = i_f * back_i[k];
      const R ahead = (v[k] > 0 ? v[k] : 0) + (i[k] > 0 ? i[k] : 0) * dt;
      const R behind = (v_b > 0 ? v_b : 0) + (i_b > 0 ? i_b : 0) * dt;
      const R high = ahead > behind ? ahead : behind;
      look[k] = (high > v_f ? high : v_f) >= p.v_th[k];
    }
    for (int64_t k = 0; k < n; ++k) {
      if (!look[k] || (p.single && s.first_step[k] >= 0)) continue;
      const Membrane<R> m = p.membrane(k);
      if (!may_fire(v[k], i[k], v_free[k], i_next[k], m, dt)) continue;
      R g[kSpikesPerStep], v_end;
      bool still;
      const R* b = j + 4 * k;
      const int fired = spikes_of_step(v[k], i[k], b[0], b[1], b[2], m, dt, p.single, g, v_end, still);
      if (!fired) continue;
      R decayed = 0;
      for (int f = 0; f < fired; ++f) {
        decayed += m.v_th * std::exp(-(dt - g[f]) / m.tau_mem);
        if (recorded < p.capacity) {
          s.spike_step[recorded] = static_cast<int32_t>(t);
          s.spike_neuron[recorded] = static_cast<int32_t>(k);
          s.spike_g[recorded] = g[f];
          const R state[5] = {v[k], i[k], b[0], b[1], b[2]};
          if (s.spike_state) std::copy(state, state + 5, s.spike_state + int64_t(recorded) * 5);
          ++recorded;
        } else {
          ++lost;
        }
        if (p.recurrent) {
          row.fill(p, p.d_rec_step.data() + k * n, p.d_rec_offset.data() + k * n, static_cast<int32_t>(t), g[f], 1);
          deliver(p, row, p.w_rec + k * n, buckets);
        }
      }
      v_next[k] = v_free[k] - decayed;
      if (s.first_step[k] < 0) {
        s.first_step[k] = static_cast<int32_t>(t);
        s.first_offset[k] = g[0];
      }
      s.count[k] += fired;
      lost += still;
    }
    if (s.v_trace) std::copy(v_next.begin(), v_next.end(), s.v_trace + t * n);
    v.swap(v_next);
    i.swap(i_next);
  }
  *s.n_spikes = recorded;
  std::copy(v.begin(), v.end(), s.v);
  *s.overflow = lost;
}

// From the cotangents and what forward kept: adds to `sums`, writes dt_event.
template <class R>
void backward(const Problem<R>& p, const Sample<R>& s, Scratch<R>& scratch, const Sums<R>& sums) {
  scratch.buckets.resize(p.n_steps * p.n * 4);
  R* const adjoint = scratch.buckets.data();
  const int64_t n = p.n;
  const R dt = p.dt, limit = static_cast<R>(p.n_steps) * dt;
  Row<R> row(n);
  std::vector<R> lam_v(s.ct_v, s.ct_v + n), lam_i(n, R(0));
  int32_t r = *s.n_spikes;
  for (int64_t t = p.n_steps - 1; t >= 0; --t) {
    if (s.ct_trace)
      for (int64_t k = 0; k < n; ++k) lam_v[k] += s.ct_trace[t * n + k];
    R* l = adjoint + t * n * 4;
    const R* v_free = s.v_free + t * n;
    const int32_t end = r;
    while (r > 0 && s.spike_step[r - 1] == t) --r;
    // Resets act on v behind the free end state: they see lam_v as it is before the surrogate of this step enters.
    struct Change {
      int64_t k;
      R d[5];
    };
    static thread_local std::vector<Change> changes;
    changes.clear();
    for (int32_t a = r; a < end;) {
      int32_t b = a;
      const int64_t k = s.spike_neuron[a];
      while (b < end && s.spike_neuron[b] == k) ++b;
      const Membrane<R> m = p.membrane(k);
      const R* state = s.spike_state + int64_t(a) * 5;
      R slopes[kSpikesPerStep * 5];
      spike_jacobian<5>(state, m, dt, p.single, static_cast<int>(b - a), slopes);
      Change change{k, {}};
      for (int32_t f = a; f < b; ++f) {
        const R when = s.spike_g[f];
        R lam = s.ct_g[f] - lam_v[k] * m.v_th / m.tau_mem * std::exp(-(dt - when) / m.tau_mem);
        if (f == a && s.first_step[k] == t) lam += s.ct_first[k];
        if (p.recurrent) {
          row.fill(p, p.d_rec_step.data() + k * n, p.d_rec_offset.data() + k * n, static_cast<int32_t>(t), when, 1);
          lam += collect(p, row, p.w_rec + k * n, adjoint, sums.dw_rec + k * n, sums.dd_rec + k * n);
        }
        for (int q = 0; q < 5; ++q) change.d[q] += lam * slopes[(f - a) * 5 + q];
      }
      changes.push_back(change);
      a = b;
    }
    for (int64_t k = 0; k < n; ++k) {
      R lam = lam_v[k];
      const R over = std::abs(v_free[k] - p.v_th[k]) + 1;
      const bool silent = p.single && s.first_step[k] >= 0 && s.first_step[k] < t;
      if (!silent) lam += s.ct_count[k] * (dt / p.unit) / (over * over);
      l[4 * k] = lam_i[k];
      l[4 * k + 1] = lam;
      l[4 * k + 2] = 0;
      l[4 * k + 3] = 0;
      lam_i[k] = p.alpha[k] * lam_i[k] + p.kappa[k] * lam;
      lam_v[k] = p.beta[k] * lam;
    }
    for (const Change& change : changes) {
      lam_v[change.k] += change.d[0];
      lam_i[change.k] += change.d[1];
      for (int q = 0; q < 3; ++q) l[4 * change.k + q] += change.d[2 + q];
    }
  }
  for (int64_t e = 0; e < p.n_events; ++e) {
    if (s.dt_event) s.dt_event[e] = 0;
    if (!(s.time[e] < limit)) continue;
    int32_t step;
    R offset;
    split_time(s.time[e], dt, step, offset);
    const int64_t at = int64_t(s.channel[e]) * n;
    row.fill(p, p.d_in_step.data() + at, p.d_in_offset.data() + at, step, offset, 0);
    const R total = collect(p, row, p.w_in + at, adjoint, sums.dw_in + at, sums.dd_in + at);
    if (s.dt_event) s.dt_event[e] = total;
  }
}

}  // namespace RANVIER_NS
}  // namespace ranvier
