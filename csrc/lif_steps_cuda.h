// Forward: the steps of a chunk, one block a sample.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

// Steps whose buckets are fetched early, as shared memory allows.
template <int kThreads>
constexpr int kAheadOf = kThreads <= 512 ? 8 : 2;

// Out of line: few steps get here, and its registers would slow the others.
template <class R>
__device__ __noinline__ int fire(R v, R i, R v_free, R i_free, Four<R> j, const Membrane<R>& m, R dt, bool single, R* g,
                                 R& v_end, bool& still) {
  if (!may_fire(v, i, v_free, i_free, m, dt)) return 0;
  v_end = v_free;
  return spikes_between(v, i, j.a, j.b, j.c, i_free, m, dt, single, g, v_end, still);
}

// Steps of chunk `k`, one block a sample, a thread for each of up to kPer neurons.
template <class R, int kPer, int kThreads>
__global__ void __launch_bounds__(kThreads) steps(Work<R> w, int32_t k) {
  extern __shared__ char shared[];
  constexpr int kAhead = kAheadOf<kThreads>;
  const Call<R>& c = w.c;
  const int32_t n = static_cast<int32_t>(c.n), tid = threadIdx.x, threads = blockDim.x;
  const int32_t warps = threads / kWarp, words = warps * kPer;
  // two of each: one barrier a step, since a step writes what the step before the last one read
  Four<R>* fetched = reinterpret_cast<Four<R>*>(shared);                                  // (kAhead, kPer, threads)
  R* all_g = reinterpret_cast<R*>(fetched + kAhead * kPer * threads);                     // (2, N, 4)
  uint32_t* masks = reinterpret_cast<uint32_t*>(all_g + size_t(2) * n * kSpikesPerStep);  // (2, words)
  uint8_t* fired = reinterpret_cast<uint8_t*>(masks + 2 * words);                         // (2, N)
  const int64_t s = blockIdx.x, set = s / c.per_set, at = s * n;
  const R dt = c.dt;
  const int32_t t0 = k * w.chunk, t1 = min(t0 + w.chunk, static_cast<int32_t>(c.n_steps));
  const int32_t last = static_cast<int32_t>(c.n_steps), circle = w.circle;

  Membrane<R> m[kPer];
  R v[kPer], i[kPer], alpha[kPer], beta[kPer], kappa[kPer], count[kPer], offset[kPer];
  int32_t first[kPer];
  R back_v[kPer], back_i[kPer], back_vi[kPer];
  Four<R>* buckets = w.buckets + s * int64_t(circle) * n;
  int32_t slot = static_cast<int32_t>(int64_t(t0) % circle);
  auto slot_of = [&](int32_t ahead) {
    const int32_t x = slot + ahead;
    return x >= circle ? x - circle : x;
  };
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    const bool mine = j < n;
    const int64_t q = mine ? j : 0;
    m[u] = membrane(c, set * n + q);
    constants(m[u], dt, alpha[u], beta[u], kappa[u]);
    back_v[u] = 1 / beta[u], back_i[u] = 1 / alpha[u], back_vi[u] = back_i[u] * m[u].q(-dt);
    v[u] = k && mine ? c.v[at + q] : R(0);
    i[u] = k && mine ? w.current[at + q] : R(0);
    count[u] = k && mine ? c.count[at + q] : R(0);
    offset[u] = k && mine ? c.first_offset[at + q] : R(0);
    first[u] = k && mine ? c.first_step[at + q] : -1;
  }
  // the bucket of step t of this thread's neuron u, where it waits in shared memory
  auto waiting = [&](int32_t t, int u) -> Four<R>& { return fetched[((t % kAhead) * kPer + u) * threads + tid]; };
  auto order = [&](int32_t t, int32_t from) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      if (j < n && t < t1) copy(&waiting(t, u), buckets + int64_t(from) * n + j);
    }
    close_group();
  };
  for (int32_t a = 0; a < kAhead; ++a) order(t0 + a, slot_of(a));
  bool near = true;
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) near = near && near_for_all(m[u], dt, 2);
  const Synapse<R>* rows = w.rec + set * n * int64_t(n);
  const int32_t most = max(w.slots - 1, 1);
  // places of this thread's results and of the bucket to fetch next, moved along
  const int64_t origin = (s * c.n_steps + t0) * n + tid;
  R *v_free = c.v_free + origin, *i_free = c.i_free + origin, *v_trace = c.v_trace + origin;
  int32_t recorded = k ? c.n_spikes[s] : 0, lost = k ? c.overflow[s] : w.bad[s];

  for (int32_t t = t0; t < t1; ++t) {
    const int parity = t & 1;
    R* g_here = all_g + size_t(parity) * n * kSpikesPerStep;
    uint32_t* mask = masks + parity * words;
    uint8_t* number = fired + parity * n;
    Four<R> bucket[kPer];
    R v_start[kPer], i_start[kPer];
    int some = 0;
    arrived<kAhead - 1>();
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) bucket[u] = waiting(t, u);
    order(t + kAhead, slot_of(kAhead));
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      const bool mine = j < n;
      const R v_f = v[u] * beta[u] + i[u] * kappa[u] + bucket[u].b, i_f = i[u] * alpha[u] + bucket[u].a;
      v_start[u] = v[u], i_start[u] = i[u];
      const R v_b = v_f * back_v[u] + i_f * back_vi[u], i_b = i_f * back_i[u];
      const bool look = worth_a_look(v[u], i[u], v_f, i_f, v_f - bucket[u].b, i_f - bucket[u].a, v_b, i_b,
                                     m[u].rate_mem, dt, m[u].v_th) &&
                        mine && !(c.single && first[u] >= 0);
      v[u] = v_f, i[u] = i_f;
      int hits = 0;
      if (look) {
        R g[kSpikesPerStep], v_end;
        bool still = false;
        hits = fire(v_start[u], i_start[u], v_f, i_f, bucket[u], m[u], dt, c.single, g, v_end, still);
        if (hits) {
          R decayed = 0;
          for (int f = 0; f < hits; ++f) {
            decayed += m[u].v_th * m[u].grow_mem(g[f] - dt);
            g_here[j * kSpikesPerStep + f] = g[f];
          }
          v[u] = v_f - decayed;
          if (first[u] < 0) first[u] = t, offset[u] = g[0];
          count[u] += hits;
          number[j] = static_cast<uint8_t>(hits | (still ? 128 : 0));
        }
      }
      const unsigned ballot = __ballot_sync(kAll, hits > 0);
      if (tid % kWarp == 0) mask[u * warps + tid / kWarp] = ballot;
      some |= hits;
      if (mine) {
        if (c.keep) v_free[u * threads] = v_f;
        if (c.parameters) i_free[u * threads] = i_f;
        if (c.trace) v_trace[u * threads] = v[u];
      }
    }
    if (__syncthreads_or(some)) {
      int32_t word = 0;
      uint32_t bits = mask[0];
      for (;;) {
        // the next few neurons that fired, and their synapses together
        int32_t sources[kDeliver];
        Synapse<R> synapses[kDeliver][kPer];
        RANVIER_UNROLL
        for (int q = 0; q < kDeliver; ++q) {
          while (bits == 0 && word + 1 < words) bits = mask[++word];
          sources[q] = -1;
          if (bits) {
            sources[q] = word / warps * threads + word % warps * kWarp + __ffs(bits) - 1;
            bits &= bits - 1;
          }
          if (c.recurrent && sources[q] >= 0) {
            const Synapse<R>* row = rows + int64_t(sources[q]) * n;
            RANVIER_UNROLL
            for (int u = 0; u < kPer; ++u)
              if (tid + u * threads < n) synapses[q][u] = load(row + tid + u * threads);
          }
        }
        if (sources[0] < 0) break;
        RANVIER_UNROLL
        for (int q = 0; q < kDeliver; ++q) {
          const int32_t source = sources[q];
          if (source < 0) continue;
          const int32_t hits = number[source] & 127;
          lost += number[source] >> 7;
          if (c.recurrent) {
            RANVIER_UNROLL
            for (int u = 0; u < kPer; ++u) {
              const int32_t j = tid + u * threads;
              if (j >= n) continue;
              const Synapse<R>& x = synapses[q][u];
              RANVIER_ROLLED
              for (int32_t f = 0; f < hits; ++f) {
                int32_t ahead;
                R h, decay, y;
                land(g_here[source * kSpikesPerStep + f], x.step, x.offset, dt, 1, ahead, h);
                if (ahead > most || t + ahead >= last) continue;
                arrive_either(near, m[u], h, decay, y);
                const R ja = x.weight * decay, jb = ja * y, jc = jb * y;
                if (ahead <= kAhead && t + ahead < t1) {  // on its way here already
                  arrived<0>();
                  Four<R>& there = waiting(t + ahead, u);
                  there.a += ja, there.b += jb, there.c += jc;
                } else {
                  add(buckets + slot_of(ahead) * int64_t(n) + j, ja, jb, jc);
                }
              }
            }
          }
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            if (tid + u * threads != source) continue;
            RANVIER_ROLLED
            for (int32_t f = 0; f < hits; ++f) {
              if (recorded + f >= c.capacity) break;
              const int64_t r = s * c.capacity + recorded + f;
              c.spike_step[r] = t;
              c.spike_neuron[r] = source;
              c.spike_g[r] = g_here[source * kSpikesPerStep + f];
              if (c.keep) {
                R* state = c.spike_state + r * 5;
                state[0] = v_start[u], state[1] = i_start[u];
                state[2] = bucket[u].a, state[3] = bucket[u].b, state[4] = bucket[u].c;
              }
            }
          }
          const int32_t fits = max(0, min(hits, static_cast<int32_t>(c.capacity) - recorded));
          recorded += fits;
          lost += hits - fits;
        }
      }
    }
    slot = slot_of(1);
    v_free += n, i_free += n, v_trace += n;
  }
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    if (j >= n) continue;
    c.v[at + j] = v[u];
    w.current[at + j] = i[u];
    c.count[at + j] = count[u];
    c.first_offset[at + j] = offset[u];
    c.first_step[at + j] = first[u];
  }
  if (tid == 0) c.n_spikes[s] = recorded, c.overflow[s] = lost;
}

}  // namespace lif
}  // namespace ranvier
