// Backward: derivatives of the recorded spikes, and the steps of a chunk from its end.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kQuiet = 4;     // steps without a spike that are walked together, backward
constexpr int kVoltages = 8;  // steps whose voltages are fetched early, backward
constexpr int kWindow = 128;  // spike records kept in shared memory, backward
// Spikes of a step whose sums are formed at a time, as registers allow.
template <int kPer>
constexpr int kTogetherOf = kPer <= 2 ? 4 : 2;

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
  spike_jacobian<K>(c.spike_state + (base + a) * 5, c.spike_g + base + a, m, c.dt, n, all);
  for (int q = 0; q < K; ++q) w.slopes[(base + r) * K + q] = all[(n - 1) * K + q];
}

// Shared memory of `adjoint_steps`. The adjoints of the next `near` steps lie in the ring as well as in global memory.
template <class R, int kPer>
struct AdjointMemory {
  static constexpr int kTogether = kTogetherOf<kPer>;
  Four<R>* ring;          // (near, N)
  R* fetched;             // (kVoltages, kPer, threads) free voltages of the steps before
  R* sums;                // (2, kTogether, warps)
  R* spike_g;             // (kWindow,)
  int32_t* spike_step;    // (kWindow,)
  int32_t* spike_neuron;  // (kWindow,)

  static __host__ __device__ size_t bytes(int32_t n, int32_t threads, int32_t near) {
    return size_t(near) * n * sizeof(Four<R>) +
           (size_t(kVoltages) * kPer * threads + 2 * kTogether * (threads / kWarp) + kWindow) * sizeof(R) +
           size_t(2) * kWindow * sizeof(int32_t);
  }
  __device__ AdjointMemory(char* shared, int32_t n, int32_t threads, int32_t near) {
    ring = reinterpret_cast<Four<R>*>(shared);
    fetched = reinterpret_cast<R*>(ring + size_t(near) * n);
    sums = fetched + kVoltages * kPer * threads;
    spike_g = sums + 2 * kTogether * (threads / kWarp);
    spike_step = reinterpret_cast<int32_t*>(spike_g + kWindow);
    spike_neuron = spike_step + kWindow;
  }
};

// Steps of chunk `k` backwards, one block a sample; leaves the adjoints of its buckets.
template <class R, int kPer, int kThreads, bool kParameters>
__global__ void __launch_bounds__(kThreads, kThreads <= 256 && sizeof(R) == 4 ? 2 : 1)
    adjoint_steps(Work<R> w, int32_t k, int32_t near) {
  extern __shared__ char shared[];
  constexpr int K = kParameters ? 8 : 5, kTogether = kTogetherOf<kPer>;
  const Call<R>& c = w.c;
  const int32_t n = held(static_cast<int32_t>(c.n)), tid = threadIdx.x, threads = held(blockDim.x);
  const int32_t warps = threads / kWarp;
  near = held(near);
  const AdjointMemory<R, kPer> memory(shared, n, threads, near);
  const int64_t s = blockIdx.x, set = s / c.per_set, at = s * n, base = s * c.capacity;
  const R dt = c.dt;
  const int32_t last = held(static_cast<int32_t>(c.n_steps)), circle = held(w.circle);
  const int32_t t0 = held(k * w.chunk), t1 = min(t0 + w.chunk, last);
  const bool recurrent = held(c.recurrent), single = held(c.single), trace = held(c.trace);
  const bool newest = k == w.n_chunks - 1;

  Four<R>* adjoint = w.buckets + s * int64_t(circle) * n + tid;
  int32_t slot = static_cast<int32_t>(int64_t(t1 - 1) % circle), place = 0;  // of this step, in global memory and ring
  auto slot_of = [&](int32_t ahead) {
    const int32_t x = slot + ahead;
    return x >= circle ? x - circle : x;
  };
  auto cell = [&](int32_t ahead, int u) -> Four<R>& {
    const int32_t p = place + ahead;
    return memory.ring[(p >= near ? p - near : p) * n + tid + u * threads];
  };
  Membrane<R> m[kPer];
  R lam_v[kPer], lam_i[kPer], alpha[kPer], beta[kPer], kappa[kPer], ct_count[kPer], ct_first[kPer];
  int32_t first[kPer];
  Share<R> share[kPer];
  bool polynomials = true;
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
    polynomials = polynomials && near_for_all(m[u], dt, 2);
    share[u] = Share<R>{0, 0, 0, 0, 0};
    if constexpr (kParameters)
      if (mine && !newest) share[u] = w.shares[at + q];
    if (mine)  // the chunk behind this one left them in global memory
      for (int32_t a = 1; a <= near && t1 - 1 + a < last; ++a)
        cell(a, u) = adjoint[slot_of(a) * int64_t(n) + u * threads];
  }
  const int32_t bottom = w.spike_segment[s * (w.n_chunks + 1) + k];
  int32_t r = w.spike_segment[s * (w.n_chunks + 1) + k + 1];
  // records [window, window + kWindow) lie in shared memory
  int32_t window = r;
  auto look_up = [&](int32_t end) {
    __syncthreads();
    window = max(bottom, end - kWindow);
    for (int32_t q = window + tid; q < end; q += threads) {
      memory.spike_step[q - window] = c.spike_step[base + q];
      memory.spike_neuron[q - window] = c.spike_neuron[base + q];
      memory.spike_g[q - window] = c.spike_g[base + q];
    }
    __syncthreads();
  };
  const Synapse<R>* rows = w.rec + set * n * int64_t(n) + tid;
  const int32_t most = held(max(w.slots - 1, 1));
  // The next records, up to kTogether of one step, the latest first, and what is asked for long before their step
  // comes: their synapses, and, by the thread whose neuron the first of them belongs to, their derivatives.
  int32_t step = -1, together = 0, own = -1;
  Synapse<R> synapses[kTogether][kPer];
  R early[K + 1];
  RANVIER_UNROLL
  for (int q = 0; q < kTogether; ++q) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) synapses[q][u] = Synapse<R>{0, 0, 0};
  }
  auto look_ahead = [&]() {
    step = -1, together = 0, own = -1;
    if (r <= bottom) return;
    if (window > bottom && r - kTogether - 1 < window) look_up(r);
    const int32_t newest_one = r - 1 - window, there = min(kTogether, r - bottom);
    int32_t steps_of[kTogether], sources[kTogether];
    RANVIER_UNROLL
    for (int q = 0; q < kTogether; ++q) {
      steps_of[q] = q < there ? memory.spike_step[newest_one - q] : -1;
      sources[q] = q < there ? memory.spike_neuron[newest_one - q] : 0;
    }
    step = steps_of[0];
    RANVIER_UNROLL
    for (int q = 0; q < kTogether; ++q) {
      if (q > together || steps_of[q] != step) continue;
      together = q + 1;
      if (recurrent) {
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u)
          if (tid + u * threads < n) synapses[q][u] = load_early(rows + sources[q] * int64_t(n) + u * threads);
      }
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u)
        if (own < 0 && sources[q] == tid + u * threads) own = q;
    }
    if (own >= 0) {
      const int64_t record = base + r - 1 - own;
      RANVIER_UNROLL
      for (int q = 0; q < K; ++q) early[q] = w.slopes[record * K + q];
      early[K] = c.ct_g[record];
    }
  };
  // What the targets of the records have to say about their times; two records and their loads together.
  auto sum_up = [&](int32_t t, R* total, auto near_too) {
    RANVIER_UNROLL
    for (int q0 = 0; q0 < kTogether; q0 += 2) {
      if (q0 >= together) break;
      Four<R> l[2][kPer];
      R h[2][kPer];
      RANVIER_UNROLL
      for (int q = 0; q < 2; ++q) {
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          const Synapse<R>& x = synapses[q0 + q][u];
          int32_t ahead;
          land(memory.spike_g[max(r - 1 - q0 - q - window, 0)], x.step, x.offset, dt, 1, ahead, h[q][u]);
          l[q][u] = Four<R>{0, 0, 0, 0};
          if (q0 + q >= together || tid + u * threads >= n || ahead > most || t + ahead >= last) continue;
          l[q][u] = ahead <= near ? cell(ahead, u) : load_early(adjoint + slot_of(ahead) * int64_t(n) + u * threads);
        }
      }
      RANVIER_UNROLL
      for (int q = 0; q < 2; ++q) {
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          R decay, y;
          arrive_as<decltype(near_too)::value>(m[u], h[q][u], decay, y);
          const R slope = slope_of_time(decay, y, m[u].rate_syn, m[u].c, l[q][u].a, l[q][u].b, l[q][u].c);
          if (q0 + q < together && tid + u * threads < n) total[q0 + q] += synapses[q0 + q][u].weight * slope;
        }
      }
    }
  };
  if (r > bottom) look_up(r);
  look_ahead();
  int parity = 0;
  // The voltage of this step waits at `turn`; what is read there makes room for step t - kVoltages.
  int32_t turn = tid;
  const R* from = c.v_free + (s * c.n_steps + t1 - 1) * n + tid;
  auto order = [&](int32_t t) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u)
      if (tid + u * threads < n && t >= t0) copy(memory.fetched + turn + u * threads, from + u * threads);
    close_group();
    turn += kPer * threads;
    if (turn >= kVoltages * kPer * threads) turn = tid;
    from -= n;
  };
  for (int32_t a = 0; a < kVoltages; ++a) order(t1 - 1 - a);
  auto leave = [&](int u, const Four<R>& x) {
    if (tid + u * threads < n) adjoint[int64_t(slot) * n + u * threads] = cell(0, u) = x;
  };
  auto step_back = [&]() {
    slot = slot == 0 ? circle - 1 : slot - 1;
    place = place == 0 ? near - 1 : place - 1;
  };

  for (int32_t t = t1 - 1; t >= t0; --t) {
    if constexpr (!kParameters) {
      // steps without a spike, several at a time: the free flow alone, and no thread waits for another
      while (!trace && t - step >= kQuiet && t - kQuiet >= t0 - 1) {
        arrived<kVoltages - kQuiet>();
        R surrogates[kQuiet][kPer];
        RANVIER_UNROLL
        for (int a = 0; a < kQuiet; ++a) {
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            const R over = std::fabs(memory.fetched[turn + u * threads] - m[u].v_th) + 1;
            const bool silent = single && first[u] >= 0 && first[u] < t - a;
            surrogates[a][u] = silent ? R(0) : quotient(ct_count[u], over * over);
          }
          order(t - a - kVoltages);
        }
        RANVIER_UNROLL
        for (int a = 0; a < kQuiet; ++a) {
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            const R lam = lam_v[u] + surrogates[a][u];
            leave(u, Four<R>{lam_i[u], lam, R(0), R(0)});
            lam_i[u] = alpha[u] * lam_i[u] + kappa[u] * lam;
            lam_v[u] = beta[u] * lam;
          }
          step_back();
        }
        t -= kQuiet;
      }
      if (t < t0) break;
    }
    R v_free[kPer], change[kPer][5], resets[kPer];
    arrived<kVoltages - 1>();
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) v_free[u] = memory.fetched[turn + u * threads];
    order(t - kVoltages);
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      if (trace && j < n) lam_v[u] += c.ct_trace[(s * c.n_steps + t) * n + j];
      resets[u] = R(0);
      RANVIER_UNROLL
      for (int q = 0; q < 5; ++q) change[u][q] = R(0);
    }
    while (step == t) {
      R* part = memory.sums + size_t(parity) * kTogether * warps;
      if (recurrent) {
        R total[kTogether];
        RANVIER_UNROLL
        for (int q = 0; q < kTogether; ++q) total[q] = R(0);
        if (polynomials)
          sum_up(t, total, Yes{});
        else
          sum_up(t, total, No{});
        RANVIER_UNROLL
        for (int o = kWarp / 2; o > 0; o /= 2) {
          RANVIER_UNROLL
          for (int q = 0; q < kTogether; ++q) total[q] += __shfl_xor_sync(kAll, total[q], o);
        }
        if (tid % kWarp == 0) {
          RANVIER_UNROLL
          for (int q = 0; q < kTogether; ++q) part[q * warps + tid / kWarp] = total[q];
        }
        __syncthreads();
        parity ^= 1;
      }
      // what this thread's own spikes get, the earliest first; nearly always there is at most one
      RANVIER_ROLLED
      for (int32_t q = own < 0 ? -1 : together - 1; q >= own && q >= 0; --q) {
        const int32_t record = r - 1 - q, source = memory.spike_neuron[record - window];
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          if (tid + u * threads != source) continue;
          const R when = memory.spike_g[record - window], decay = m[u].grow_mem(when - dt);
          R lam = (q == own ? early[K] : c.ct_g[base + record]) - lam_v[u] * m[u].v_th * m[u].rate_mem * decay;
          if (first[u] == t) {
            const int32_t before = record - 1 - window;
            const bool leads =
                record == bottom || memory.spike_step[before] != t || memory.spike_neuron[before] != source;
            if (leads) lam += ct_first[u];
          }
          if (recurrent) {
            RANVIER_UNROLL
            for (int32_t x = 0; x < kThreads / kWarp; ++x)
              if (x < warps) lam += part[q * warps + x];
          }
          R slopes[K];
          RANVIER_UNROLL
          for (int x = 0; x < K; ++x) slopes[x] = q == own ? early[x] : w.slopes[(base + record) * K + x];
          RANVIER_UNROLL
          for (int x = 0; x < 5; ++x) change[u][x] += lam * slopes[x];
          if constexpr (kParameters) {
            resets[u] += m[u].v_th * decay;
            share[u].tau_mem +=
                lam * slopes[kTauMem] - lam_v[u] * m[u].v_th * decay * (dt - when) * m[u].rate_mem * m[u].rate_mem;
            share[u].tau_syn += lam * slopes[kTauSyn];
            share[u].v_th += lam * slopes[kThreshold] - lam_v[u] * decay;
          }
        }
      }
      r -= together;
      look_ahead();
    }
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      if constexpr (kParameters) {
        // the step behind this one began with the state that is known here: the derivatives of Eq. 6
        if (tid + u * threads < n && t + 1 < last) {
          const R i_end = c.i_free[(s * c.n_steps + t) * n + tid + u * threads] * alpha[u];
          const R v_end = v_free[u] - resets[u], bend = i_end * m[u].q_slope(dt), y = kappa[u] / alpha[u];
          share[u].tau_mem += share[u].held_v * (v_end * beta[u] * dt + bend) * m[u].rate_mem * m[u].rate_mem;
          share[u].tau_syn += (share[u].held_v * (i_end * y * dt - bend) + share[u].held_i * i_end * dt) *
                              m[u].rate_syn * m[u].rate_syn;
        }
      }
      R lam = lam_v[u];
      const R over = std::fabs(v_free[u] - m[u].v_th) + 1;
      const bool silent = single && first[u] >= 0 && first[u] < t;
      const R surrogate = silent ? R(0) : quotient(ct_count[u], over * over);
      lam += surrogate;
      if constexpr (kParameters) share[u].v_th -= surrogate;
      leave(u, Four<R>{lam_i[u] + change[u][2], lam + change[u][3], change[u][4], R(0)});
      share[u].held_v = lam, share[u].held_i = lam_i[u];
      lam_i[u] = alpha[u] * lam_i[u] + kappa[u] * lam + change[u][1];
      lam_v[u] = beta[u] * lam + change[u][0];
    }
    step_back();
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
