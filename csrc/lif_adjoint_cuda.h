// Backward: derivatives of the recorded spikes, and the steps of a chunk from its end.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kQuiet = 4;     // steps without a spike that are walked together, backward
constexpr int kVoltages = 8;  // steps whose voltages are fetched early, backward
constexpr int kWindow = 128;  // spike records kept in shared memory, backward
constexpr int kTogether = 8;  // spikes of a step whose sums are formed at a time, backward

// Derivatives of the time of every recorded spike for the state of its step; a thread a spike.
template <class R, int K>
__global__ void jacobian(Work<R> w) {
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.y, r = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, base = s * c.capacity;
  if (r >= c.n_spikes[s]) return;
  const int32_t step = c.spike_step[base + r], neuron = c.spike_neuron[base + r];
  int64_t a = r;
  while (a > 0 && c.spike_step[base + a - 1] == step && c.spike_neuron[base + a - 1] == neuron) --a;
  const Membrane<R> m = membrane(c, s / c.per_set * c.n + neuron);
  R all[kSpikesPerStep * K];
  const int n = static_cast<int>(r - a) + 1;
  spike_jacobian<K>(c.spike_state + (base + r) * 5, m, c.dt, c.single, n, all);
  for (int q = 0; q < K; ++q) w.slopes[(base + r) * K + q] = all[(n - 1) * K + q];
}

// Steps of chunk `k` backwards, one block a sample; leaves the adjoints of its buckets.
template <class R, int kPer, int kThreads, bool kParameters>
__global__ void __launch_bounds__(kThreads) adjoint_steps(Work<R> w, int32_t k) {
  extern __shared__ char shared[];
  constexpr int K = kParameters ? 8 : 5;
  const Call<R>& c = w.c;
  const int32_t n = static_cast<int32_t>(c.n), tid = threadIdx.x, threads = blockDim.x, warps = threads / kWarp;
  R* fetched = reinterpret_cast<R*>(shared);                            // (kVoltages, kPer, threads)
  R* sums = fetched + kVoltages * kPer * threads;                       // (2, kTogether, warps)
  R* spike_g = sums + 2 * kTogether * warps;                            // (kWindow,)
  int32_t* spike_step = reinterpret_cast<int32_t*>(spike_g + kWindow);  // (kWindow,)
  int32_t* spike_neuron = spike_step + kWindow;                         // (kWindow,)
  const int64_t s = blockIdx.x, set = s / c.per_set, at = s * n, base = s * c.capacity;
  const R dt = c.dt;
  const int32_t last = static_cast<int32_t>(c.n_steps), circle = w.circle;
  const int32_t t0 = k * w.chunk, t1 = min(t0 + w.chunk, last);
  const bool newest = k == w.n_chunks - 1;

  Membrane<R> m[kPer];
  R lam_v[kPer], lam_i[kPer], alpha[kPer], beta[kPer], kappa[kPer], ct_count[kPer], ct_first[kPer];
  int32_t first[kPer];
  Share<R> share[kPer];
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    const bool mine = j < n;
    const int64_t q = mine ? j : 0;
    m[u] = membrane(c, set * n + q);
    constants(m[u], dt, alpha[u], beta[u], kappa[u]);
    lam_v[u] = !mine ? R(0) : newest ? c.ct_v[at + q] : w.lam[at + q];
    lam_i[u] = !mine || newest ? R(0) : w.current[at + q];
    ct_count[u] = mine ? c.ct_count[at + q] * (dt / c.unit) : R(0);
    ct_first[u] = mine ? c.ct_first[at + q] : R(0);
    first[u] = mine ? c.first_step[at + q] : -1;
    share[u] = Share<R>{0, 0, 0, 0, 0};
    if constexpr (kParameters)
      if (mine && !newest) share[u] = w.shares[at + q];
  }
  int32_t r = w.spike_segment[s * (w.n_chunks + 1) + k + 1];
  const int32_t bottom = w.spike_segment[s * (w.n_chunks + 1) + k];
  // records [window, window + kWindow) lie in shared memory
  int32_t window = r;
  auto look_up = [&](int32_t end) {
    __syncthreads();
    window = max(bottom, end - kWindow);
    for (int32_t q = window + tid; q < end; q += threads) {
      spike_step[q - window] = c.spike_step[base + q];
      spike_neuron[q - window] = c.spike_neuron[base + q];
      spike_g[q - window] = c.spike_g[base + q];
    }
    __syncthreads();
  };
  if (r > bottom) look_up(r);
  int32_t step = r > bottom ? spike_step[r - 1 - window] : -1;
  int parity = 0;
  Four<R>* adjoint = w.buckets + s * int64_t(circle) * n;
  bool near = true;
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) near = near && near_for_all(m[u], dt, 2);
  const Synapse<R>* rows = w.rec + set * n * int64_t(n);
  const int32_t most = max(w.slots - 1, 1);
  int32_t slot = static_cast<int32_t>(int64_t(t1 - 1) % circle);
  auto waiting = [&](int32_t t, int u) -> R& { return fetched[((t % kVoltages) * kPer + u) * threads + tid]; };
  auto order = [&](int32_t t) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      if (j < n && t >= t0) copy(&waiting(t, u), c.v_free + (s * c.n_steps + t) * n + j);
    }
    close_group();
  };
  for (int32_t a = 0; a < kVoltages; ++a) order(t1 - 1 - a);

  for (int32_t t = t1 - 1; t >= t0; --t) {
    if constexpr (!kParameters) {
      // steps without a spike, several at a time: the free flow alone, and no thread waits for another
      while (!c.trace && t - step >= kQuiet && t - kQuiet >= t0 - 1) {
        arrived<kVoltages - kQuiet>();
        R surrogates[kQuiet][kPer];
        RANVIER_UNROLL
        for (int a = 0; a < kQuiet; ++a) {
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            const R over = std::fabs(waiting(t - a, u) - m[u].v_th) + 1;
            const bool silent = c.single && first[u] >= 0 && first[u] < t - a;
            surrogates[a][u] = silent ? R(0) : quotient(ct_count[u], over * over);
          }
        }
        RANVIER_UNROLL
        for (int a = 0; a < kQuiet; ++a) {
          order(t - a - kVoltages);
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            const R lam = lam_v[u] + surrogates[a][u];
            if (tid + u * threads < n)
              adjoint[int64_t(slot) * n + tid + u * threads] = Four<R>{lam_i[u], lam, R(0), R(0)};
            lam_i[u] = alpha[u] * lam_i[u] + kappa[u] * lam;
            lam_v[u] = beta[u] * lam;
          }
          slot = slot == 0 ? circle - 1 : slot - 1;
        }
        t -= kQuiet;
      }
      if (t < t0) break;
    }
    R v_free[kPer], change[kPer][5], resets[kPer];
    arrived<kVoltages - 1>();
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) v_free[u] = waiting(t, u);
    order(t - kVoltages);
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      if (c.trace && j < n) lam_v[u] += c.ct_trace[(s * c.n_steps + t) * n + j];
      resets[u] = R(0);
      RANVIER_UNROLL
      for (int q = 0; q < 5; ++q) change[u][q] = R(0);
    }
    while (step == t) {  // up to kTogether records of this step, the same for all threads
      if (r - kTogether - 1 < window && window > bottom) look_up(r);
      int32_t low = r - 1;
      while (low > bottom && r - low < kTogether && spike_step[low - 1 - window] == t) --low;
      const int32_t together = r - low;
      // what the neuron of a spike needs, asked for before the sums are formed
      auto neuron_of = [&](int32_t x) { return kPer == 1 ? x : x % threads; };
      R early[K + 1];
      int32_t own = -1;
      for (int32_t f = 0; f < together; ++f) {
        if (neuron_of(spike_neuron[low + f - window]) != tid || own >= 0) continue;
        own = f;
        RANVIER_UNROLL
        for (int q = 0; q < K; ++q) early[q] = w.slopes[(base + low + f) * K + q];
        early[K] = c.ct_g[base + low + f];
      }
      R* part = sums + size_t(parity) * kTogether * warps;
      if (c.recurrent) {
        for (int32_t f = 0; f < together; f += kDeliver) {
          R total[kDeliver];
          RANVIER_UNROLL
          for (int q = 0; q < kDeliver; ++q) total[q] = R(0);
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            const int32_t j = tid + u * threads;
            if (j >= n) continue;
            // the loads of both together
            Synapse<R> x[kDeliver];
            Four<R> l[kDeliver];
            R h[kDeliver];
            RANVIER_UNROLL
            for (int q = 0; q < kDeliver; ++q) {
              const int32_t at_record = low + min(f + q, together - 1) - window;
              x[q] = load(rows + int64_t(spike_neuron[at_record]) * n + j);
            }
            RANVIER_UNROLL
            for (int q = 0; q < kDeliver; ++q) {
              const int32_t at_record = low + min(f + q, together - 1) - window;
              int32_t ahead;
              land(spike_g[at_record], x[q].step, x[q].offset, dt, 1, ahead, h[q]);
              int32_t there = slot + ahead;
              if (there >= circle) there -= circle;
              l[q] = Four<R>{0, 0, 0, 0};
              if (ahead <= most && t + ahead < last && f + q < together) l[q] = adjoint[int64_t(there) * n + j];
            }
            RANVIER_UNROLL
            for (int q = 0; q < kDeliver; ++q) {
              R decay, y;
              arrive_either(near, m[u], h[q], decay, y);
              total[q] += x[q].weight * slope_of_time(decay, y, m[u].rate_syn, m[u].c, l[q].a, l[q].b, l[q].c);
            }
          }
          RANVIER_UNROLL
          for (int q = 0; q < kDeliver; ++q) total[q] = warp_sum(total[q]);
          if (tid % kWarp == 0) {
            RANVIER_UNROLL
            for (int q = 0; q < kDeliver; ++q)
              if (f + q < together) part[(f + q) * warps + tid / kWarp] = total[q];
          }
        }
        __syncthreads();
        parity ^= 1;
      }
      for (int32_t f = 0; f < together; ++f) {
        const int64_t record = base + low + f;
        const int32_t source = spike_neuron[low + f - window];
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          if (tid + u * threads != source) continue;
          const R when = spike_g[low + f - window], decay = m[u].grow_mem(when - dt);
          R lam = (f == own ? early[K] : c.ct_g[record]) - lam_v[u] * m[u].v_th * m[u].rate_mem * decay;
          const int32_t before = low + f - 1 - window;
          const bool leads = low + f == bottom || spike_step[before] != t || spike_neuron[before] != source;
          if (leads && first[u] == t) lam += ct_first[u];
          if (c.recurrent)
            for (int32_t q = 0; q < warps; ++q) lam += part[f * warps + q];
          R slopes[K];
          RANVIER_UNROLL
          for (int q = 0; q < K; ++q) slopes[q] = f == own ? early[q] : w.slopes[record * K + q];
          RANVIER_UNROLL
          for (int q = 0; q < 5; ++q) change[u][q] += lam * slopes[q];
          if constexpr (kParameters) {
            resets[u] += m[u].v_th * decay;
            share[u].tau_mem +=
                lam * slopes[kTauMem] - lam_v[u] * m[u].v_th * decay * (dt - when) * m[u].rate_mem * m[u].rate_mem;
            share[u].tau_syn += lam * slopes[kTauSyn];
            share[u].v_th += lam * slopes[kThreshold] - lam_v[u] * decay;
          }
        }
      }
      r = low;
      if (r > bottom && r - 1 < window) look_up(r);
      step = r > bottom ? spike_step[r - 1 - window] : -1;
    }
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      if constexpr (kParameters) {
        // the step behind this one began with the state that is known here: the derivatives of Eq. 6
        if (j < n && t + 1 < last) {
          const R i_end = c.i_free[(s * c.n_steps + t) * n + j] * alpha[u], v_end = v_free[u] - resets[u];
          const R bend = i_end * m[u].q_slope(dt), y = kappa[u] / alpha[u];
          share[u].tau_mem += share[u].held_v * (v_end * beta[u] * dt + bend) * m[u].rate_mem * m[u].rate_mem;
          share[u].tau_syn += (share[u].held_v * (i_end * y * dt - bend) + share[u].held_i * i_end * dt) *
                              m[u].rate_syn * m[u].rate_syn;
        }
      }
      R lam = lam_v[u];
      const R over = std::fabs(v_free[u] - m[u].v_th) + 1;
      const bool silent = c.single && first[u] >= 0 && first[u] < t;
      const R surrogate = silent ? R(0) : quotient(ct_count[u], over * over);
      lam += surrogate;
      if constexpr (kParameters) share[u].v_th -= surrogate;
      if (j < n)
        adjoint[int64_t(slot) * n + j] = Four<R>{lam_i[u] + change[u][2], lam + change[u][3], change[u][4], R(0)};
      share[u].held_v = lam, share[u].held_i = lam_i[u];
      lam_i[u] = alpha[u] * lam_i[u] + kappa[u] * lam + change[u][1];
      lam_v[u] = beta[u] * lam + change[u][0];
    }
    slot = slot == 0 ? circle - 1 : slot - 1;
  }
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    if (j >= n) continue;
    w.lam[at + j] = lam_v[u];
    w.current[at + j] = lam_i[u];
    if constexpr (kParameters) w.shares[at + j] = share[u];
  }
}

}  // namespace lif
}  // namespace ranvier
