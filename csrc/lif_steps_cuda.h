// Forward: the steps of a chunk, one block a sample. Warps walk the neurons; one more searches for their crossings.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

// Neurons whose synapses are fetched together, as registers allow.
template <int kPer>
constexpr int kDeliverOf = kPer == 1 ? 4 : 2;
// Steps whose buckets are fetched early, as shared memory allows.
template <int kPer, int kThreads>
constexpr int kAheadOf = kPer > 1 ? 2 : (kThreads <= 128 ? 8 : 4);

// Steps that are tried at once, without a barrier each, after as many in which no neuron could fire.
template <int kPer, int kThreads>
constexpr int kTryOf = kAheadOf<kPer, kThreads> / 2;

// What a neuron that may fire hands over.
template <class R>
struct Candidate {
  R v, i, v_free, i_free, ja, jb, jc;
};

// Shared memory of `steps`. A spike reaches the next `near` steps in the ring, by additions that nobody waits for;
// those behind it are in global memory.
template <class R, int kPer, int kThreads>
struct StepsMemory {
  static constexpr int kAhead = kAheadOf<kPer, kThreads>;
  Four<R>* fetched;          // (kAhead, kPer, threads) input arrivals of the next steps
  Four<R>* ring;             // (near, N) arrivals of spikes
  uint32_t* masks;           // (2, words) who may fire; two, so that one barrier a step is enough
  Candidate<R>* candidates;  // (N,) what the search begins with; it leaves v with the resets in v_free
  R* g;                      // (N, 4) spike times
  uint16_t* list;            // (N,) who may fire, in a row
  uint8_t* number;           // (N,) spikes of those, and 128 if there were more

  // Words of a mask; at least four, the number that is searched without a loop.
  static __host__ __device__ int32_t words(int32_t threads) {
    const int32_t x = kPer * (threads / kWarp);
    return x < 4 ? 4 : x;
  }
  static __host__ __device__ size_t bytes(int32_t n, int32_t threads, int32_t near) {
    return (size_t(kAhead) * kPer * threads + size_t(near) * n) * sizeof(Four<R>) +
           size_t(n) * (sizeof(Candidate<R>) + kSpikesPerStep * sizeof(R)) +
           size_t(2) * words(threads) * sizeof(uint32_t) + n * (sizeof(uint16_t) + 1);
  }
  __device__ StepsMemory(char* shared, int32_t n, int32_t threads, int32_t near) {
    fetched = reinterpret_cast<Four<R>*>(shared);
    ring = fetched + kAhead * kPer * threads;
    masks = reinterpret_cast<uint32_t*>(ring + size_t(near) * n);
    candidates = reinterpret_cast<Candidate<R>*>(masks + 2 * words(threads));
    g = reinterpret_cast<R*>(candidates + n);
    list = reinterpret_cast<uint16_t*>(g + size_t(n) * kSpikesPerStep);
    number = reinterpret_cast<uint8_t*>(list + n);
  }
};

// Neuron number `q` of those in four words of bits.
__device__ __forceinline__ int32_t pick(const uint32_t (&bits)[4], int32_t q) {
  int32_t word = 0;
  uint32_t here = bits[0];
  RANVIER_UNROLL
  for (int x = 0; x < 3; ++x) {
    const int32_t count = __popc(bits[x]);
    if (word == x && q >= count) word = x + 1, q -= count, here = bits[x + 1];
  }
  for (; q > 0; --q) here &= here - 1;
  return word * kWarp + __ffs(here) - 1;
}

// The searching warp: a lane a neuron that may fire. It records the spikes while the others go on.
template <class R, int kPer, int kThreads>
__device__ void search(const Work<R>& w, const StepsMemory<R, kPer, kThreads>& memory, int32_t k, int32_t words) {
  constexpr int kTry = kTryOf<kPer, kThreads>;
  const int32_t all = held(blockDim.x);
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.x, set = s / c.per_set;
  const int32_t lane = threadIdx.x % kWarp, t0 = k * w.chunk, t1 = min(t0 + w.chunk, static_cast<int32_t>(c.n_steps));
  const int32_t capacity = static_cast<int32_t>(c.capacity);
  const bool single = held(c.single), keep = held(c.keep);
  const R dt = c.dt;
  int32_t recorded = k ? c.n_spikes[s] : 0, lost = 0, quiet = c.parameters || c.trace ? t0 - t1 : 0;
  const Membrane<R> common = w.membranes[set * c.n];
  const bool alike = held(w.differ[set] == 0);
  meet(all);
  for (int32_t t = t0; t < t1; ++t) {
    while (quiet >= kTry && t + kTry <= t1) {
      if (meet_or(all, 0))
        quiet = 0;
      else
        t += kTry;
    }
    if (t == t1) break;
    if (!meet_or(all, 0)) {
      ++quiet;
      continue;
    }
    quiet = min(quiet, 0);
    const uint32_t* mask = memory.masks + (t & 1) * words;
    int32_t total = 0;
    uint32_t bits[4];
    if (words == 4) {
      RANVIER_UNROLL
      for (int x = 0; x < 4; ++x) bits[x] = mask[x], total += __popc(bits[x]);
    } else {
      for (int32_t word = 0; word < words; ++word) {
        const uint32_t x = mask[word];
        if (x >> lane & 1) memory.list[total + __popc(x & ((1u << lane) - 1))] = word * kWarp + lane;
        total += __popc(x);
      }
      __syncwarp();
    }
    for (int32_t first = 0; first < total; first += kWarp) {
      int32_t hits = 0, j = 0;
      Candidate<R> at;
      R g[kSpikesPerStep];
      if (first + lane < total) {
        j = words == 4 ? pick(bits, first + lane) : memory.list[first + lane];
        at = memory.candidates[j];
        Membrane<R> m = common;
        if (!alike) m = w.membranes[set * c.n + j];
        bool still = false;
        if (may_fire(at.v, at.i, at.v_free, at.i_free, m, dt)) {
          R v_end = at.v_free;
          hits = spikes_between(at.v, at.i, at.ja, at.jb, at.jc, at.i_free, m, dt, single,
                                memory.g + j * kSpikesPerStep, v_end, still);
          memory.candidates[j].v_free = v_end;
        }
        memory.number[j] = static_cast<uint8_t>(hits | (still ? 128 : 0));
        lost += still;
        RANVIER_UNROLL
        for (int f = 0; f < kSpikesPerStep; ++f) g[f] = memory.g[j * kSpikesPerStep + f];
      }
      if (first + kWarp >= total) meet(all);
      // the records of all lanes in a row
      int32_t upto = hits;
      RANVIER_UNROLL
      for (int o = 1; o < kWarp; o *= 2) {
        const int32_t left = __shfl_up_sync(kAll, upto, o);
        if (lane >= o) upto += left;
      }
      RANVIER_UNROLL
      for (int f = 0; f < kSpikesPerStep; ++f) {
        const int32_t place = recorded + upto - hits + f;
        if (f >= hits) continue;
        if (place >= capacity) {
          ++lost;
          continue;
        }
        const int64_t r = s * capacity + place;
        c.spike_step[r] = t;
        c.spike_neuron[r] = j;
        c.spike_g[r] = g[f];
        if (keep) {
          R* state = c.spike_state + r * 5;
          state[0] = at.v, state[1] = at.i, state[2] = at.ja, state[3] = at.jb, state[4] = at.jc;
        }
      }
      recorded = min(capacity, recorded + __shfl_sync(kAll, upto, kWarp - 1));
    }
  }
  RANVIER_UNROLL
  for (int o = kWarp / 2; o > 0; o /= 2) lost += __shfl_xor_sync(kAll, lost, o);
  if (lane == 0) c.n_spikes[s] = recorded, c.overflow[s] = lost + (k ? c.overflow[s] : w.bad[s]);
}

// Steps of chunk `k`, one block a sample, a thread for each of up to kPer neurons, and a warp that searches.
template <class R, int kPer, int kThreads>
__global__ void __launch_bounds__(kThreads + kWarp, kThreads <= 256 && sizeof(R) == 4 ? 2 : 1)
    steps(Work<R> w, int32_t k, int32_t near) {
  extern __shared__ char shared[];
  constexpr int kAhead = kAheadOf<kPer, kThreads>, kDeliver = kDeliverOf<kPer>, kTry = kTryOf<kPer, kThreads>;
  const Call<R>& c = w.c;
  const int32_t n = held(static_cast<int32_t>(c.n)), tid = threadIdx.x, threads = held(blockDim.x - kWarp);
  const int32_t warps = threads / kWarp, words = StepsMemory<R, kPer, kThreads>::words(threads);
  const int32_t all = threads + kWarp;
  near = held(near);
  const StepsMemory<R, kPer, kThreads> memory(shared, n, threads, near);
  if (tid >= threads) return search<R, kPer, kThreads>(w, memory, k, words);

  const int64_t s = blockIdx.x, set = s / c.per_set, at = s * n;
  const R dt = c.dt;
  const int32_t last = held(static_cast<int32_t>(c.n_steps)), circle = held(w.circle);
  const int32_t t0 = k * w.chunk, t1 = held(min(t0 + w.chunk, last));
  const bool recurrent = held(c.recurrent), single = held(c.single), keep = held(c.keep);
  const bool parameters = held(c.parameters), trace = held(c.trace);
  Membrane<R> m[kPer];
  R v[kPer], i[kPer], alpha[kPer], beta[kPer], kappa[kPer], count[kPer], offset[kPer];
  int32_t first[kPer];
  R back_v[kPer], back_i[kPer], back_vi[kPer];
  Four<R>* buckets = w.buckets + s * int64_t(circle) * n + tid;
  bool polynomials = true;
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    const bool mine = j < n;
    const int64_t q = mine ? j : 0;
    m[u] = w.membranes[set * n + q];
    constants(m[u], dt, alpha[u], beta[u], kappa[u]);
    back_v[u] = 1 / beta[u], back_i[u] = 1 / alpha[u], back_vi[u] = back_i[u] * m[u].q(-dt);
    v[u] = k && mine ? c.v[at + q] : R(0);
    i[u] = k && mine ? w.current[at + q] : R(0);
    count[u] = k && mine ? c.count[at + q] : R(0);
    offset[u] = k && mine ? c.first_offset[at + q] : R(0);
    first[u] = k && mine ? c.first_step[at + q] : -1;
    polynomials = polynomials && near_for_all(m[u], dt, 2);
    if (mine)
      for (int32_t a = 0; a < near; ++a) memory.ring[a * n + j] = Four<R>{0, 0, 0, 0};
  }
  // The input arrivals of this step wait at `turn`; what is read there makes room for step t + kAhead.
  int32_t turn = tid,
          coming = static_cast<int32_t>(int64_t(t0) % circle);  // place in the circle of what is fetched next
  const Four<R>* from = buckets + int64_t(coming) * n;
  auto after = [&](int32_t at) { return at + kPer * threads < kAhead * kPer * threads ? at + kPer * threads : tid; };
  auto order = [&](int32_t t) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u)
      if (tid + u * threads < n && t < t1) copy(memory.fetched + turn + u * threads, from + u * threads);
    close_group();
    turn = after(turn);
    from += n;
    if (++coming == circle) coming = 0, from = buckets;
  };
  for (int32_t a = 0; a < kAhead; ++a) order(t0 + a);
  int32_t place = 0;  // of this step in the ring
  auto cell = [&](int32_t ahead, int u) -> Four<R>& {
    int32_t p = place + ahead;
    if (p >= near) p -= near;
    return memory.ring[p * n + tid + u * threads];
  };
  // the bucket `ahead` steps behind the next one to be walked, in global memory
  auto far = [&](int32_t ahead, int u) {
    int32_t x = coming - kAhead + ahead;
    x = x < 0 ? x + circle : x >= circle ? x - circle : x;
    return buckets + x * int64_t(n) + u * threads;
  };
  const Synapse<R>* rows = w.rec + set * n * int64_t(n) + tid;
  const int32_t most = held(max(w.slots - 1, 1));
  // The next few neurons that may fire, and their synapses to this thread's.
  struct Group {
    int32_t sources[kDeliver];
    Synapse<R> synapses[kDeliver][kPer];
  };
  auto fetch = [&](Bits& candidates, Group& x) {
    RANVIER_UNROLL
    for (int q = 0; q < kDeliver; ++q) {
      x.sources[q] = q == 0 || x.sources[q > 0 ? q - 1 : 0] >= 0 ? candidates.next() : -1;
      if (!recurrent || x.sources[q] < 0) continue;
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u)
        if (tid + u * threads < n) x.synapses[q][u] = load_early(rows + x.sources[q] * int64_t(n) + u * threads);
    }
  };
  struct Arrival {
    int32_t ahead;  // 0: none
    R ja, jb, jc;
  };
  auto form = [&](int32_t t, R when, const Synapse<R>& x, int u, auto near_too) {
    Arrival a;
    R h, decay, y;
    land(when, x.step, x.offset, dt, 1, a.ahead, h);
    if (a.ahead > most || t + a.ahead >= last) a.ahead = 0;
    arrive_as<decltype(near_too)::value>(m[u], h, decay, y);
    a.ja = x.weight * decay, a.jb = a.ja * y, a.jc = a.jb * y;
    return a;
  };
  auto put = [&](const Arrival& a, int u) {
    if (a.ahead > near) {
      add(far(a.ahead - 1, u), a.ja, a.jb, a.jc);
    } else if (a.ahead > 0) {
      Four<R>& there = cell(a.ahead, u);
      there.a += a.ja, there.b += a.jb, there.c += a.jc;
    }
  };
  // Sums up the arrivals of the spikes of a group: all first ones, then the second and later ones of a neuron.
  auto deliver = [&](int32_t t, const Group& x, auto near_too) {
    int32_t number[kDeliver];
    R g[kDeliver];
    Arrival a[kDeliver];
    RANVIER_UNROLL
    for (int q = 0; q < kDeliver; ++q) {
      number[q] = x.sources[q] < 0 ? 0 : memory.number[x.sources[q]] & 127;
      g[q] = memory.g[max(x.sources[q], 0) * kSpikesPerStep];
    }
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      if (tid + u * threads >= n) continue;
      RANVIER_UNROLL
      for (int q = 0; q < kDeliver; ++q) a[q] = form(t, g[q], x.synapses[q][u], u, near_too);
      RANVIER_UNROLL
      for (int q = 0; q < kDeliver; ++q)
        if (number[q]) put(a[q], u);
      RANVIER_UNROLL
      for (int q = 0; q < kDeliver; ++q) {
        RANVIER_ROLLED
        for (int32_t f = 1; f < number[q]; ++f)
          put(form(t, memory.g[x.sources[q] * kSpikesPerStep + f], x.synapses[q][u], u, near_too), u);
      }
    }
  };
  // places of this thread's results, moved along
  const int64_t origin = (s * c.n_steps + t0) * n + tid;
  R* v_free = c.v_free + origin;

  for (int32_t x = tid; x < 2 * words; x += threads) memory.masks[x] = 0;
  meet(all);
  // Eq. 6, and whether the step needs a look
  auto advance = [&](R& v, R& i, const Four<R>& bucket, int u) {
    const R v_f = v * beta[u] + i * kappa[u] + bucket.b, i_f = i * alpha[u] + bucket.a;
    const R v_b = v_f * back_v[u] + i_f * back_vi[u], i_b = i_f * back_i[u];
    const bool look =
        worth_a_look(v, i, v_f, i_f, v_f - bucket.b, i_f - bucket.a, v_b, i_b, m[u].rate_mem, dt, m[u].v_th);
    v = v_f, i = i_f;
    return look && tid + u * threads < n && !(single && first[u] >= 0);
  };
  auto bucket_at = [&](int32_t ahead, int32_t at, int u) {
    Four<R> x = memory.fetched[at + u * threads];
    if (tid + u * threads < n) {
      const Four<R> here = cell(ahead, u);
      x.a += here.a, x.b += here.b, x.c += here.c;
    }
    return x;
  };
  // Room for what the walk of a step leaves, and on to the next.
  auto leave = [&](int32_t t, const R(&v_f)[kPer]) {
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      if (tid + u * threads >= n) continue;
      cell(0, u) = Four<R>{0, 0, 0, 0};
      if (keep) v_free[u * threads] = v_f[u];
    }
    order(t + kAhead);
    v_free += n;
  };
  int32_t quiet = parameters || trace ? t0 - t1 : 0;

  for (int32_t t = t0; t < t1; ++t) {
    while (quiet >= kTry && t + kTry <= t1) {
      R v_on[kPer], i_on[kPer], v_all[kTry][kPer];
      int some = 0;
      int32_t at = turn;
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) v_on[u] = v[u], i_on[u] = i[u];
      arrived<kAhead - kTry>();
      RANVIER_UNROLL
      for (int a = 0; a < kTry; ++a) {
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          some |= advance(v_on[u], i_on[u], bucket_at(a, at, u), u);
          v_all[a][u] = v_on[u];
        }
        at = after(at);
      }
      if (meet_or(all, some)) {
        quiet = 0;
        continue;
      }
      RANVIER_UNROLL
      for (int a = 0; a < kTry; ++a) {
        leave(t + a, v_all[a]);
        if (++place == near) place = 0;
      }
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) v[u] = v_on[u], i[u] = i_on[u];
      t += kTry;
    }
    if (t == t1) break;
    uint32_t* mask = memory.masks + (t & 1) * words;
    bool look[kPer];
    int some = 0;
    arrived<kAhead - 1>();
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      const R v_start = v[u], i_start = i[u];
      const Four<R> bucket = bucket_at(0, turn, u);
      look[u] = advance(v[u], i[u], bucket, u);
      const unsigned ballot = __ballot_sync(kAll, look[u]);
      if (tid % kWarp == 0) mask[u * warps + tid / kWarp] = ballot;
      some |= look[u];
      if (look[u]) {
        Candidate<R>& x = memory.candidates[j];
        x.v = v_start, x.i = i_start, x.v_free = v[u], x.i_free = i[u];
        x.ja = bucket.a, x.jb = bucket.b, x.jc = bucket.c;
      }
      if (parameters && j < n) c.i_free[origin + (t - t0) * int64_t(n) + u * threads] = i[u];
    }
    leave(t, v);
    if (!meet_or(all, some)) {
      ++quiet;
    } else {
      quiet = min(quiet, 0);
      // synapses are on their way while crossings are searched for
      Bits candidates(mask, words);
      Group here, next;
      fetch(candidates, here);
      meet(all);
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u) {
        if (!look[u]) continue;
        const int32_t j = tid + u * threads, hits = memory.number[j] & 127;
        if (hits == 0) continue;
        v[u] = memory.candidates[j].v_free;
        if (first[u] < 0) first[u] = t, offset[u] = memory.g[j * kSpikesPerStep];
        count[u] += hits;
      }
      while (recurrent) {
        const bool more = here.sources[kDeliver - 1] >= 0;
        if (more) fetch(candidates, next);
        if (polynomials)
          deliver(t, here, Yes{});
        else
          deliver(t, here, No{});
        if (!more) break;
        here = next;
      }
    }
    if (trace) {
      RANVIER_UNROLL
      for (int u = 0; u < kPer; ++u)
        if (tid + u * threads < n) c.v_trace[origin + (t - t0) * int64_t(n) + u * threads] = v[u];
    }
    if (++place == near) place = 0;
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
    // what the ring holds for the next chunk
    for (int32_t a = 0; a < near && t1 + a < last; ++a) {
      const Four<R> x = cell(a, u);
      add(far(a, u), x.a, x.b, x.c);
    }
  }
}

}  // namespace lif
}  // namespace ranvier
