// Backward: derivatives of the recorded spikes, and the steps of a chunk from its end.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kQuiet = 4;     // steps without a spike that are walked together, backward
constexpr int kWindow = 256;  // spike records kept in shared memory, backward
// Steps whose voltages are fetched early, backward: as many as hide the way from memory, where there is room.
template <int kPer>
constexpr int kVoltagesOf = kPer == 1 ? 24 : 8;
// Spikes of a step whose sums are formed at a time, as registers allow.
template <int kPer>
constexpr int kTogetherOf = kPer <= 2 ? 4 : 2;
// Whether there are registers to ask for the adjoints in global memory one group of records before their use, and to
// keep there what a kernel was called with.
template <class R, int kPer, int kThreads>
constexpr bool kAsksEarly = kPer == 1 && (sizeof(R) == 4 || kThreads <= 256);
template <class R, int kPer, int kThreads, bool kParameters>
constexpr bool kKeeps = kPer == 1 && (sizeof(R) == 4 ? kThreads <= 128 || !kParameters : kThreads <= 256);

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
  static constexpr int kTogether = kTogetherOf<kPer>, kVoltages = kVoltagesOf<kPer>;
  // those before the window belong to no step
  static constexpr int kRecords = kTogether + kWindow;

  Four<R>* ring;          // (near, N)
  R* fetched;             // (kVoltages, kPer, threads) free voltages of the steps before
  R* sums;                // (2, kTogether, warps)
  R* spike_g;             // (kRecords,) from -kTogether
  int32_t* spike_step;    // (kRecords,) from -kTogether
  int32_t* spike_neuron;  // (kRecords,) from -kTogether

  static __host__ __device__ size_t bytes(int32_t n, int32_t threads, int32_t near) {
    return size_t(near) * n * sizeof(Four<R>) +
           (size_t(kVoltages) * kPer * threads + 2 * kTogether * (threads / kWarp) + kRecords) * sizeof(R) +
           size_t(2) * kRecords * sizeof(int32_t);
  }
  __device__ AdjointMemory(char* shared, int32_t n, int32_t threads, int32_t near) {
    ring = reinterpret_cast<Four<R>*>(shared);
    fetched = reinterpret_cast<R*>(ring + size_t(near) * n);
    sums = fetched + kVoltages * kPer * threads;
    R* const g = sums + 2 * kTogether * (threads / kWarp);
    int32_t* const steps = reinterpret_cast<int32_t*>(g + kRecords);
    spike_g = g + kTogether, spike_step = steps + kTogether, spike_neuron = steps + kRecords + kTogether;
  }
};

// Records that are worked on together: the latest `together` before `end`, all of one step; -1: none is left. Bit q of
// `own`: whether record end - 1 - q is of this thread's neuron.
struct Group {
  int32_t end, step, together;
  uint32_t own;
};

// A number, the same for all threads of a warp, or a place in global memory that has been written to shared memory and
// read again; of that this thread has two places for itself, `apart` from each other. What a kernel was called with,
// and what follows from it, is otherwise fetched and formed anew at every use: `held` alone does not always prevent it.
template <class T>
__device__ __forceinline__ T kept(volatile int32_t* place, int32_t apart, T x) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 4) {
    *place = static_cast<int32_t>(x);
    return held(static_cast<T>(*place));
  } else {
    const uint64_t bits = reinterpret_cast<uint64_t>(x);
    place[0] = static_cast<int32_t>(bits), place[apart] = static_cast<int32_t>(bits >> 32);
    const uint32_t low = place[0], high = place[apart];
    const uint64_t whole = uint64_t(high) << 32 | low;
#ifdef __CUDA_ARCH__
    return static_cast<T>(__cvta_global_to_generic(whole));  // else loads would look for its kind of memory
#else
    return reinterpret_cast<T>(whole);
#endif
  }
}

// Steps of chunk `k` backwards, one block a sample; leaves the adjoints of its buckets.
template <class R, int kPer, int kThreads, bool kParameters>
__global__ void __launch_bounds__(kThreads, kThreads <= 256 && sizeof(R) == 4 ? 2 : 1)
    adjoint_steps(Work<R> w, int32_t k, int32_t near) {
  extern __shared__ char shared[];
  constexpr int K = kParameters ? 8 : 5, kTogether = kTogetherOf<kPer>, kVoltages = kVoltagesOf<kPer>;
  constexpr bool kEarly = kAsksEarly<R, kPer, kThreads>;
  constexpr int kLanded = kEarly ? kTogether : 2;  // records whose arrivals are in registers
  const Call<R>& c = w.c;
  // free until the first voltages are fetched
  volatile int32_t* const spare = reinterpret_cast<int32_t*>(
      AdjointMemory<R, kPer>(shared, static_cast<int32_t>(c.n), blockDim.x, near).fetched + threadIdx.x);
  const int32_t apart = blockDim.x * (sizeof(R) / sizeof(int32_t));
  auto keep = [&](auto x) {
    if constexpr (kKeeps<R, kPer, kThreads, kParameters>)
      return kept(spare, apart, x);
    else if constexpr (sizeof(x) == sizeof(int32_t))
      return held(x);
    else
      return x;
  };
  const int32_t n = keep(static_cast<int32_t>(c.n)), tid = threadIdx.x;
  const int32_t threads = keep(static_cast<int32_t>(blockDim.x)), warps = threads / kWarp;
  near = keep(near);
  const AdjointMemory<R, kPer> memory(shared, n, threads, near);
  const int64_t s = blockIdx.x, set = s / c.per_set, at = s * n, base = s * c.capacity;
  const R dt = c.dt;
  const int32_t last = keep(static_cast<int32_t>(c.n_steps)), circle = keep(w.circle);
  const int32_t t0 = keep(k * w.chunk), t1 = min(t0 + w.chunk, last);
  const bool recurrent = held(c.recurrent), single = held(c.single), trace = held(c.trace);
  const bool newest = k == w.n_chunks - 1;
  auto mine = [&](int u) { return tid + u * threads < n; };

  // of this step: its slot in global memory, this thread's column there, and its place in the ring
  int32_t slot = static_cast<int32_t>(int64_t(t1 - 1) % circle), place = tid;
  Four<R>* const adjoint = keep(w.buckets + s * circle * n + tid);
  const Synapse<R>* const rows = keep(w.rec + set * n * int64_t(n) + tid);
  const R* const slopes_of = keep(w.slopes + base * K);
  const R* const ct_g = keep(c.ct_g + base);
  const int32_t most = keep(max(w.slots - 1, 1));
  const uint32_t row = static_cast<uint32_t>(n) * sizeof(Four<R>);
  auto column = [&](int32_t slot) {  // without a sign: one instruction
    return reinterpret_cast<Four<R>*>(reinterpret_cast<char*>(adjoint) + uint64_t(static_cast<uint32_t>(slot)) * row);
  };
  Four<R>* out = column(slot);
  const int32_t ring = near * n;
  auto later = [&](int32_t ahead, int u) -> Four<R>* {
    const int32_t x = slot + ahead;
    return column(x >= circle ? x - circle : x) + u * threads;
  };
  auto cell = [&](int32_t ahead, int u) -> Four<R>& {
    const int32_t x = place + ahead * n;
    return memory.ring[(x >= ring ? x - ring : x) + u * threads];
  };
  Membrane<R> m[kPer];
  R lam_v[kPer], lam_i[kPer], alpha[kPer], beta[kPer], kappa[kPer], ct_count[kPer], ct_first[kPer];
  int32_t first[kPer];
  Share<R> share[kPer];
  bool polynomials = true;
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    if (mine(u))  // the chunk behind this one left them in global memory
      for (int32_t a = 1; a <= near && t1 - 1 + a < last; ++a) copy(&cell(a, u), later(a, u));
  }
  close_group();
  // The voltage of this step waits at `turn`; what is read there makes room for step t - kVoltages.
  int32_t turn = tid;
  const R* from = c.v_free + (s * c.n_steps + t1 - 1) * n + tid;
  auto after = [&](int32_t turn) {
    const int32_t x = turn + kPer * threads;
    return x >= kVoltages * kPer * threads ? tid : x;
  };
  auto order = [&](int32_t t) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u)
      if (mine(u) && t >= t0) copy(memory.fetched + turn + u * threads, from + u * threads);
    close_group();
    turn = after(turn);
    from -= n;
  };
  RANVIER_ROLLED
  for (int32_t a = 0; a < kVoltages; ++a) order(t1 - 1 - a);
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    const int64_t q = mine(u) ? j : 0;
    m[u] = membrane(c, set * n + q);
    constants(m[u], dt, alpha[u], beta[u], kappa[u]);
    lam_v[u] = !mine(u) ? R(0) : newest ? c.ct_v[at + q] : w.lam[at + q];
    lam_i[u] = !mine(u) || newest ? R(0) : w.current[at + q];
    ct_count[u] = mine(u) ? c.ct_count[at + q] * (dt / c.unit) : R(0);
    ct_first[u] = mine(u) ? c.ct_first[at + q] : R(0);
    first[u] = mine(u) ? c.first_step[at + q] : -1;
    polynomials = polynomials && near_for_all(m[u], dt, 2);
    share[u] = Share<R>{0, 0, 0, 0, 0};
    if constexpr (kParameters)
      if (mine(u) && !newest) share[u] = w.shares[at + q];
  }
  const int32_t bottom = w.spike_segment[s * (w.n_chunks + 1) + k];
  const int32_t top = w.spike_segment[s * (w.n_chunks + 1) + k + 1];
  // records [window, window + kWindow) lie in shared memory
  int32_t window = top;
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
  const bool distant = held(recurrent && near < most);  // whether some adjoints are not in the ring
  // What a group needs is asked for long before its step comes: its synapses; where there are registers for it, one
  // group later, when they are here, the adjoints that are not in the ring; and, by the thread whose neuron one of its
  // records belongs to, the derivatives of that.
  Group asked{top, -1, 0, 0};
  Synapse<R> synapses[kTogether][kPer];
  R early[K + 1];
  RANVIER_UNROLL
  for (int q = 0; q < kTogether; ++q) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) synapses[q][u] = Synapse<R>{0, 0, 0};
  }
  // Asks for the group before the one that was asked for last; records from `used` on are no longer needed.
  auto ask = [&](int32_t used) {
    const int32_t end = asked.end - asked.together;
    asked = Group{end, -1, 0, 0};
    if (end <= bottom) return;
    if (window > bottom && end - kTogether - 1 < window) look_up(used);
    const int32_t latest = end - 1 - window;
    int32_t steps_of[kTogether], sources[kTogether];
    RANVIER_UNROLL
    for (int q = 0; q < kTogether; ++q)
      steps_of[q] = memory.spike_step[latest - q], sources[q] = memory.spike_neuron[latest - q];
    asked.step = steps_of[0];
    bool same[kTogether];
    RANVIER_UNROLL
    for (int q = 0; q < kTogether; ++q) {
      same[q] = q == 0 || (same[max(q - 1, 0)] && steps_of[q] == asked.step);
      asked.together += same[q];
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        if (same[q] && recurrent && mine(u)) synapses[q][u] = load_early(rows + (sources[q] * n + u * threads));
        if (same[q] && sources[q] == tid + u * threads) asked.own |= 1u << q;
      }
    }
  };
  auto ask_derivatives = [&](const Group& g) {
    if (g.own == 0) return;
    const int32_t record = g.end - __ffs(g.own);
    RANVIER_UNROLL
    for (int q = 0; q < K; ++q) early[q] = slopes_of[record * int64_t(K) + q];
    early[K] = ct_g[record];
  };
  // Where and with what records arrive: `ahead` steps later, 0 where they do not; the adjoints there that are in global
  // memory alone.
  R weight[kLanded][kPer], h[kLanded][kPer];
  int32_t ahead[kLanded][kPer];
  Four<R> far[kLanded][kPer];
  RANVIER_UNROLL
  for (int q = 0; q < kLanded; ++q) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) weight[q][u] = h[q][u] = 0, ahead[q][u] = 0, far[q][u] = Four<R>{0, 0, 0, 0};
  }
  auto land_two = [&](int q0) {
    RANVIER_UNROLL
    for (int q = q0; q < q0 + 2; ++q) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        const Synapse<R>& x = synapses[q][u];
        const int y = q % kLanded;
        int32_t to;
        land(memory.spike_g[asked.end - 1 - q - window], x.step, x.offset, dt, 1, to, h[y][u]);
        const bool arrives = q < asked.together && mine(u) && to <= most && asked.step + to < last;
        weight[y][u] = x.weight;
        ahead[y][u] = arrives ? to : 0;
        far[y][u] = Four<R>{0, 0, 0, 0};
      }
    }
  };
  // Before step t, for records `before` steps earlier.
  auto ask_far = [&](int q0, int32_t before) {
    RANVIER_UNROLL
    for (int q = q0; q < q0 + 2; ++q) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        const int y = q % kLanded;
        if (ahead[y][u] > near) far[y][u] = load_early(later(ahead[y][u] - before, u));
      }
    }
  };
  // What the targets of two records have to say about their times.
  auto sum_up = [&](int q0, R* total, auto near_too) {
    Four<R> l[2][kPer];
    RANVIER_UNROLL
    for (int q = 0; q < 2; ++q) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        const int y = (q0 + q) % kLanded;
        l[q][u] = far[y][u];
        if (static_cast<uint32_t>(ahead[y][u] - 1) < static_cast<uint32_t>(near)) l[q][u] = cell(ahead[y][u], u);
      }
    }
    RANVIER_UNROLL
    for (int q = 0; q < 2; ++q) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        const int y = (q0 + q) % kLanded;
        R decay, grown;
        arrive_as<decltype(near_too)::value>(m[u], h[y][u], decay, grown);
        const R slope = slope_of_time(decay, grown, m[u].rate_syn, m[u].c, l[q][u].a, l[q][u].b, l[q][u].c);
        total[q0 + q] += weight[y][u] * slope;
      }
    }
  };
  // The group whose arrivals are in registers, and whether its far adjoints have been asked for: they are final once
  // the walk is at most `near` steps behind it.
  Group landed{top, -1, 0, 0};
  bool fetched = false;
  auto land_asked = [&](int32_t t) {
    landed = asked;
    if (!recurrent || landed.together == 0) return;
    const int32_t before = t - landed.step;
    fetched = before <= near;
    RANVIER_UNROLL
    for (int q = 0; q < kTogether; q += 2) {
      if (q >= landed.together) break;
      land_two(q);
      if (distant && fetched) ask_far(q, before);
    }
  };
  RANVIER_UNROLL
  for (int q = 1; q <= kTogether; ++q) {
    if (tid == 0) memory.spike_step[-q] = -1, memory.spike_neuron[-q] = 0, memory.spike_g[-q] = 0;
  }
  if (top > bottom) look_up(top);
  ask(top);
  ask_derivatives(asked);
  if constexpr (kEarly) land_asked(t1 - 1), ask(top);
  int parity = 0;
  auto leave = [&](int u, const Four<R>& x) {
    if (mine(u)) out[u * threads] = memory.ring[place + u * threads] = x;
  };
  auto step_back = [&]() {
    out = (slot == 0 ? column(circle) : out) - n;
    slot = (slot == 0 ? circle : slot) - 1;
    place = (place < n ? place + ring : place) - n;
  };
  auto surrogate_of = [&](int u, R v, int32_t t) {
    const R over = std::fabs(v - m[u].v_th) + 1;
    const bool silent = single && first[u] >= 0 && first[u] < t;
    return silent ? R(0) : quotient(ct_count[u], over * over);
  };
  // Steps without a spike: the free flow alone, and no thread waits for another; several of them do not cross the end
  // of the circle.
  auto flow = [&](int32_t t, auto several) {
    constexpr int kSteps = decltype(several)::value ? kQuiet : 1;
    arrived<kVoltages - kSteps>();
    R surrogates[kSteps][kPer];
    RANVIER_UNROLL
    for (int a = 0, at_turn = turn; a < kSteps; ++a) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) surrogates[a][u] = memory.fetched[at_turn + u * threads];
      at_turn = after(at_turn);
    }
    RANVIER_UNROLL
    for (int a = 0; a < kSteps; ++a) {
      order(t - a - kVoltages);
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) surrogates[a][u] = surrogate_of(u, surrogates[a][u], t - a);
    }
    RANVIER_UNROLL
    for (int a = 0; a < kSteps; ++a) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        const R lam = lam_v[u] + surrogates[a][u];
        leave(u, Four<R>{lam_i[u], lam, R(0), R(0)});
        lam_i[u] = alpha[u] * lam_i[u] + kappa[u] * lam;
        lam_v[u] = beta[u] * lam;
      }
      if constexpr (kSteps == 1)
        step_back();
      else
        --slot, out -= n, place = (place < n ? place + ring : place) - n;
    }
  };
  const Group& next = kEarly ? landed : asked;

  for (int32_t t = t1 - 1; t >= t0; --t) {
    if constexpr (!kParameters) {
      const int32_t stop = max(next.step, t0 - 1);
      while (!trace && t > stop) {
        if (t - stop >= kQuiet && slot >= kQuiet)
          flow(t, Yes{}), t -= kQuiet;
        else
          flow(t, No{}), --t;
      }
      if (t < t0) break;
    }
    R v_free[kPer], surrogate[kPer], change[kPer][5], resets[kPer];
    arrived<kVoltages - 1>();
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) v_free[u] = memory.fetched[turn + u * threads];
    order(t - kVoltages);
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      if (__builtin_expect(trace, 0) && j < n) lam_v[u] += c.ct_trace[(s * c.n_steps + t) * n + j];
      surrogate[u] = surrogate_of(u, v_free[u], t);
      resets[u] = R(0);
      RANVIER_UNROLL
      for (int q = 0; q < 5; ++q) change[u][q] = R(0);
    }
    while (next.step == t) {
      const Group now = next;
      R* part = memory.sums + size_t(parity) * kTogether * warps;
      R total[kTogether];
      RANVIER_UNROLL
      for (int q = 0; q < kTogether; ++q) total[q] = R(0);
      if (recurrent) {
        RANVIER_UNROLL
        for (int q = 0; q < kTogether; q += 2) {
          if (q >= now.together) break;
          if constexpr (!kEarly) land_two(q);
          if (distant && !(kEarly && fetched)) ask_far(q, 0);
          if (polynomials)
            sum_up(q, total, Yes{});
          else
            sum_up(q, total, No{});
        }
      }
      if constexpr (kEarly) land_asked(t);
      ask(now.end);
      if (recurrent) {
        // lanes share the records: with each of the first sums, a lane keeps half of its records and hands on the rest
        const int32_t lane = tid % kWarp;
        int o = kWarp / 2;
        RANVIER_UNROLL
        for (int half = kTogether / 2; half > 0; half /= 2, o /= 2) {
          RANVIER_UNROLL
          for (int q = 0; q < half; ++q) {
            const R keeps = lane & o ? total[q + half] : total[q], gives = lane & o ? total[q] : total[q + half];
            total[q] = keeps + __shfl_xor_sync(kAll, gives, o);
          }
        }
        RANVIER_UNROLL
        for (; o > 0; o /= 2) total[0] += __shfl_xor_sync(kAll, total[0], o);
        constexpr int kShare = kWarp / kTogether;
        if (lane % kShare == 0) part[lane / kShare * warps + tid / kWarp] = total[0];
        __syncthreads();
        parity ^= 1;
      }
      // what this thread's own spikes get; nearly always there is at most one
      auto receive = [&](int32_t q, R lam, const R* slopes) {
        const int32_t x = now.end - 1 - q - window, source = memory.spike_neuron[x];
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          if (kPer > 1 && tid + u * threads != source) continue;
          const R when = memory.spike_g[x], decay = m[u].grow_mem(when - dt);
          lam -= lam_v[u] * m[u].v_th * m[u].rate_mem * decay;
          if (first[u] == t && (memory.spike_step[x - 1] != t || memory.spike_neuron[x - 1] != source))
            lam += ct_first[u];
          if (recurrent) {
            RANVIER_UNROLL
            for (int32_t y = 0; y < kThreads / kWarp; ++y)
              if (y < warps) lam += part[q * warps + y];
          }
          RANVIER_UNROLL
          for (int y = 0; y < 5; ++y) change[u][y] += lam * slopes[y];
          if constexpr (kParameters) {
            resets[u] += m[u].v_th * decay;
            share[u].tau_mem +=
                lam * slopes[kTauMem] - lam_v[u] * m[u].v_th * decay * (dt - when) * m[u].rate_mem * m[u].rate_mem;
            share[u].tau_syn += lam * slopes[kTauSyn];
            share[u].v_th += lam * slopes[kThreshold] - lam_v[u] * decay;
          }
        }
      };
      if (now.own != 0) {
        receive(__ffs(now.own) - 1, early[K], early);
        RANVIER_ROLLED
        for (uint32_t rest = now.own & (now.own - 1); rest != 0; rest &= rest - 1) {
          const int32_t q = __ffs(rest) - 1, record = now.end - 1 - q;
          R slopes[K];
          RANVIER_UNROLL
          for (int y = 0; y < K; ++y) slopes[y] = slopes_of[record * int64_t(K) + y];
          receive(q, ct_g[record], slopes);
        }
      }
      ask_derivatives(next);
    }
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      if constexpr (kParameters) {
        // the step behind this one began with the state that is known here: the derivatives of Eq. 6
        if (mine(u) && t + 1 < last) {
          const R i_end = c.i_free[(s * c.n_steps + t) * n + tid + u * threads] * alpha[u];
          const R v_end = v_free[u] - resets[u], bend = i_end * m[u].q_slope(dt), y = kappa[u] / alpha[u];
          share[u].tau_mem += share[u].held_v * (v_end * beta[u] * dt + bend) * m[u].rate_mem * m[u].rate_mem;
          share[u].tau_syn += (share[u].held_v * (i_end * y * dt - bend) + share[u].held_i * i_end * dt) *
                              m[u].rate_syn * m[u].rate_syn;
        }
      }
      const R lam = lam_v[u] + surrogate[u];
      if constexpr (kParameters) share[u].v_th -= surrogate[u];
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
