// The LIF sequence on the GPU, forward and backward: docs/equations.md, Eq. 5 to 16 and 26 to 31.
//
// A thread owns a neuron of a sample, and with it one column of every array over time, so sums have one order and
// nothing needs a lock: results are the same bits every time. Time is cut into chunks of at most `chunk` steps, so that
// the buckets (forward) and their adjoints (backward) take a bounded piece of memory, a circle of `circle` = chunk +
// longest delay steps.
//
// forward    split delays; for each chunk: `scatter` the input events of the chunk into the buckets, then walk its
//            `steps`, one block a sample, where recurrent spikes go into the same buckets
// backward   `jacobian` of every recorded spike (no step waits for another); for each chunk from the last: walk back
//            its `adjoint_steps`, which leave the adjoints of the buckets, then `gather` them: one warp a (source,
//            32 targets) and its share of the samples, summed in registers
#include "arrival.h"
#include "lif_cuda.h"
#include "lif_step.h"

namespace ranvier {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kAhead = 2;                       // steps whose buckets are fetched early
constexpr int kGatherWarps = 8;                 // warps of a block that share the samples of a source
constexpr int kStage = 128;                     // events staged in shared memory at a time
constexpr int kTogether = 8;                    // spikes of a step whose sums are formed at a time, backward
constexpr size_t kBuckets = size_t(160) << 20;  // bytes aimed at for the circle of buckets

template <class R>
struct alignas(4 * sizeof(R)) Four {
  R a, b, c, d;
};
template <class R>
struct alignas(2 * sizeof(R)) Event {
  R offset;
  int32_t step;
};

// What a sample adds to the derivatives of a neuron's parameters; adjoints of the free state of the step before.
template <class R>
struct Share {
  R tau_mem, tau_syn, v_th, held_v, held_i;
};

// A call, its scratch and what follows from its sizes.
template <class R>
struct Work {
  Call<R> c;
  int32_t chunk, circle, n_chunks;
  int32_t *in_step, *rec_step;  // (P, M, N), (P, N, N) whole steps of the delays
  R *in_offset, *rec_offset;    // the rest
  Four<R>* buckets;             // (S, circle, N)
  R* current;                   // (S, N) i between chunks; backward: adjoint of i
  R* lam;                       // (S, N) adjoint of v between chunks
  int32_t* bad;                 // (S,) events that cannot be used
  int32_t* segment;             // (S, n_chunks + 1) first event of each chunk
  // backward
  int32_t* spike_segment;                 // (S, n_chunks + 1) first record of each chunk
  int32_t *starts, *cursors;              // (S, n_chunks, M + 1) events of a chunk by channel; place to write next
  int32_t *spike_starts, *spike_cursors;  // (S, n_chunks, N + 1)
  Event<R>*sorted, *spike_sorted;         // (S, E), (S, C)
  R* slopes;                              // (S, C, K) Jacobian of each spike
  R *tau_in, *tau_rec;                    // (2, P, M, N), (2, P, N, N) derivatives for tau_mem, tau_syn a synapse
  Share<R>* shares;                       // (S, N)
};

template <class R>
struct Layout {
  char* base;
  size_t used = 0;
  template <class T>
  void take(T*& pointer, size_t n) {
    pointer = reinterpret_cast<T*>(base + used);
    used += (n * sizeof(T) + 255) / 256 * 256;
  }
};

template <class R>
size_t arrange(const Call<R>& c, void* scratch, bool backward, Work<R>& w) {
  w.c = c;
  const int64_t slots = c.n_slots < c.n_steps ? c.n_slots : c.n_steps;
  const int64_t row = c.n_samples * c.n * int64_t(sizeof(Four<R>));
  int64_t chunk = int64_t(kBuckets) / (row > 0 ? row : 1) - slots;
  const int64_t least = slots > 64 ? slots : 64;
  if (chunk < least) chunk = least;
  if (chunk + slots >= c.n_steps) {
    w.chunk = static_cast<int32_t>(c.n_steps);
    w.circle = static_cast<int32_t>(c.n_steps);
  } else {
    const int64_t n = (c.n_steps + chunk - 1) / chunk;
    w.chunk = static_cast<int32_t>((c.n_steps + n - 1) / n);
    w.circle = static_cast<int32_t>(w.chunk + slots);
  }
  w.n_chunks = static_cast<int32_t>((c.n_steps + w.chunk - 1) / w.chunk);
  Layout<R> layout{static_cast<char*>(scratch)};
  const size_t s = c.n_samples, p = c.n_sets, n = c.n, m = c.n_inputs, in = p * m * n;
  const size_t rec = c.recurrent ? p * n * n : 0, chunks = w.n_chunks;
  layout.take(w.in_step, in), layout.take(w.in_offset, in);
  layout.take(w.rec_step, rec), layout.take(w.rec_offset, rec);
  layout.take(w.buckets, s * w.circle * n);
  layout.take(w.current, s * n);
  layout.take(w.bad, s);
  layout.take(w.segment, s * (chunks + 1));
  if (backward) {
    layout.take(w.lam, s * n);
    layout.take(w.spike_segment, s * (chunks + 1));
    layout.take(w.starts, s * chunks * (m + 1)), layout.take(w.cursors, s * chunks * (m + 1));
    layout.take(w.sorted, s * c.n_events);
    if (c.recurrent) {
      layout.take(w.spike_starts, s * chunks * (n + 1)), layout.take(w.spike_cursors, s * chunks * (n + 1));
      layout.take(w.spike_sorted, s * c.capacity);
    }
    layout.take(w.slopes, s * c.capacity * (c.parameters ? 8 : 5));
    if (c.parameters) layout.take(w.tau_in, 2 * in), layout.take(w.tau_rec, 2 * rec), layout.take(w.shares, s * n);
  }
  return layout.used;
}

// Adds to a bucket that no other thread touches; it need not wait for memory.
__device__ __forceinline__ void add(Four<float>* place, float a, float b, float c) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(place), "f"(a), "f"(b), "f"(c),
               "f"(0.f));
#else
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(&place->a), "f"(a));
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(&place->b), "f"(b));
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(&place->c), "f"(c));
#endif
}
__device__ __forceinline__ void add(Four<double>* place, double a, double b, double c) {
  asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(&place->a), "d"(a));
  asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(&place->b), "d"(b));
  asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(&place->c), "d"(c));
}
// Reads past the first cache, which does not see such additions.
__device__ __forceinline__ Four<float> fetch(const Four<float>* place) {
  const float4 x = __ldcg(reinterpret_cast<const float4*>(place));
  return {x.x, x.y, x.z, x.w};
}
__device__ __forceinline__ Four<double> fetch(const Four<double>* place) {
  const double2 x = __ldcg(reinterpret_cast<const double2*>(place));
  const double2 y = __ldcg(reinterpret_cast<const double2*>(place) + 1);
  return {x.x, x.y, y.x, y.y};
}

template <class R>
__device__ __forceinline__ R warp_sum(R x) {
  RANVIER_UNROLL
  for (int k = kWarp / 2; k > 0; k /= 2) x += __shfl_xor_sync(kAll, x, k);
  return x;
}

template <class R>
__device__ __forceinline__ Membrane<R> membrane(const Call<R>& c, int64_t at) {
  return Membrane<R>(c.tau_mem[at], c.tau_syn[at], c.v_th[at]);
}

// exp(-h / tau_syn) and q(h) of an arrival (Eq. 5).
template <class R>
__device__ __forceinline__ void arrive(const Membrane<R>& m, R h, R& decay, R& y) {
  decay = exp_far(-h * m.rate_syn);
  y = m.q(h);
}

template <class R>
__global__ void split_delays(const R* d, int64_t size, R dt, int32_t* step, R* offset) {
  const int64_t k = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (k < size) split_time(d[k], dt, step[k], offset[k]);
}

// Chunk in which event `e` is sent; n_chunks for those outside of the run.
template <class R>
__device__ int32_t chunk_of(const Work<R>& w, const R* time, int64_t e) {
  const R limit = R(w.c.n_steps) * w.c.dt;
  if (!(time[e] < limit)) return w.n_chunks;
  int32_t step;
  R offset;
  split_time(time[e], w.c.dt, step, offset);
  return max(0, min(static_cast<int32_t>(w.c.n_steps) - 1, step)) / w.chunk;
}

// Where the events of each chunk begin, and how many events cannot be used.
template <class R>
__global__ void find_segments(Work<R> w) {
  const int64_t s = blockIdx.x, e = blockIdx.y * int64_t(blockDim.x) + threadIdx.x;
  if (e >= w.c.n_events) return;
  const R* time = w.c.time + s * w.c.n_events;
  int32_t* segment = w.segment + s * (w.n_chunks + 1);
  const int32_t here = chunk_of(w, time, e), before = e == 0 ? -1 : chunk_of(w, time, e - 1);
  for (int32_t k = before + 1; k <= here; ++k) segment[k] = static_cast<int32_t>(e);
  if (e == w.c.n_events - 1)
    for (int32_t k = here + 1; k <= w.n_chunks; ++k) segment[k] = static_cast<int32_t>(w.c.n_events);
  const int32_t channel = w.c.channel[s * w.c.n_events + e];
  if (here < w.n_chunks && (time[e] < 0 || channel < 0 || channel >= w.c.n_inputs)) atomicAdd(&w.bad[s], 1);
}

// The same for the spike records.
template <class R>
__global__ void find_spike_segments(Work<R> w) {
  const int64_t s = blockIdx.x;
  const int32_t n = w.c.n_spikes[s];
  const int32_t* step = w.c.spike_step + s * w.c.capacity;
  for (int32_t k = threadIdx.x; k <= w.n_chunks; k += blockDim.x) {
    int32_t low = 0, high = n;  // the first record of step >= k * chunk
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (int64_t(step[middle]) < int64_t(k) * w.chunk)
        low = middle + 1;
      else
        high = middle;
    }
    w.spike_segment[s * (w.n_chunks + 1) + k] = low;
  }
}

// The events of a chunk by source, in each source by time: a stable counting sort, one warp a (chunk, sample).
template <class R, bool kSpikes>
__global__ void sort_events(Work<R> w) {
  const int64_t s = blockIdx.y, k = blockIdx.x, size = kSpikes ? w.c.capacity : w.c.n_events;
  const int32_t lane = threadIdx.x, sources = static_cast<int32_t>(kSpikes ? w.c.n : w.c.n_inputs);
  const int32_t* segment = (kSpikes ? w.spike_segment : w.segment) + s * (w.n_chunks + 1) + k;
  const int32_t* key = (kSpikes ? w.c.spike_neuron : w.c.channel) + s * size;
  const int64_t table = (s * w.n_chunks + k) * (sources + 1);
  int32_t* starts = (kSpikes ? w.spike_starts : w.starts) + table;
  int32_t* cursors = (kSpikes ? w.spike_cursors : w.cursors) + table;
  Event<R>* out = (kSpikes ? w.spike_sorted : w.sorted) + s * size;
  const int32_t begin = segment[0], end = segment[1];
  const R* time = kSpikes ? nullptr : w.c.time + s * size;
  auto usable = [&](int32_t e) { return key[e] >= 0 && key[e] < sources && (kSpikes || time[e] >= 0); };
  for (int32_t j = lane; j <= sources; j += kWarp) cursors[j] = 0;
  __syncwarp();
  for (int32_t e = begin + lane; e < end; e += kWarp)
    if (usable(e)) atomicAdd(&cursors[key[e]], 1);
  __syncwarp();
  int32_t total = begin;
  for (int32_t j = 0; j < sources; j += kWarp) {
    const int32_t mine = j + lane < sources ? cursors[j + lane] : 0;
    int32_t sum = mine;
    for (int o = 1; o < kWarp; o *= 2) {
      const int32_t left = __shfl_up_sync(kAll, sum, o);
      if (lane >= o) sum += left;
    }
    if (j + lane < sources) starts[j + lane] = cursors[j + lane] = total + sum - mine;
    total += __shfl_sync(kAll, sum, kWarp - 1);
  }
  if (lane == 0) starts[sources] = total;
  __syncwarp();
  for (int32_t first = begin; first < end; first += kWarp) {
    const int32_t e = first + lane;
    const bool there = e < end && usable(e);
    const unsigned active = __ballot_sync(kAll, there);
    if (there) {
      const unsigned peers = __match_any_sync(active, key[e]);
      const int leader = __ffs(peers) - 1;
      int32_t place = 0;
      if (lane == leader) place = atomicAdd(&cursors[key[e]], __popc(peers));
      place = __shfl_sync(peers, place, leader) + __popc(peers & ((1u << lane) - 1));
      Event<R> x;
      if constexpr (kSpikes) {
        x.step = w.c.spike_step[s * size + e];
        x.offset = w.c.spike_g[s * size + e];
      } else {
        split_time(time[e], w.c.dt, x.step, x.offset);
      }
      out[place] = x;
    }
    __syncwarp();
  }
}

// Input events of chunk `k` into the buckets: a thread takes all events of its sample to its neuron, in their order.
template <class R>
__global__ void __launch_bounds__(kStage) scatter(Work<R> w, int32_t k) {
  struct Staged {
    R offset;
    int32_t step, channel;
  };
  __shared__ Staged staged[kStage];
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.y, j = blockIdx.x * int64_t(kStage) + threadIdx.x, n = c.n;
  const int64_t set = s / c.per_set;
  const bool mine = j < n;
  const int64_t synapse = set * c.n_inputs * n + (mine ? j : 0);
  const R* weight = c.w_in + synapse;
  const int32_t* d_step = w.in_step + synapse;
  const R* d_offset = w.in_offset + synapse;
  const Membrane<R> m = membrane(c, set * n + (mine ? j : 0));
  Four<R>* buckets = w.buckets + s * int64_t(w.circle) * n + j;
  const int32_t begin = w.segment[s * (w.n_chunks + 1) + k], end = w.segment[s * (w.n_chunks + 1) + k + 1];
  const int32_t last = static_cast<int32_t>(c.n_steps), base = static_cast<int32_t>(int64_t(k) * w.chunk % w.circle);
  const int32_t t0 = k * w.chunk;
  for (int32_t first = begin; first < end; first += kStage) {
    const int32_t e = first + threadIdx.x;
    __syncthreads();
    if (e < end) {
      Staged x;
      const R time = c.time[s * c.n_events + e];
      split_time(time, c.dt, x.step, x.offset);
      x.channel = c.channel[s * c.n_events + e];
      if (time < 0 || x.channel < 0 || x.channel >= c.n_inputs) x.channel = -1;
      staged[threadIdx.x] = x;
    }
    __syncthreads();
    const int32_t here = min(kStage, end - first);
#pragma unroll 4
    for (int32_t q = 0; q < here; ++q) {
      const Staged x = staged[q];
      if (!mine || x.channel < 0) continue;
      const int64_t at = int64_t(x.channel) * n;
      const R weight_here = __ldg(weight + at);
      int32_t ahead;
      R h, decay, y;
      land(x.offset, __ldg(d_step + at), __ldg(d_offset + at), c.dt, 0, ahead, h);
      const int32_t bucket = x.step + ahead;
      if (bucket >= last) continue;
      int32_t slot = base + bucket - t0;
      if (slot >= w.circle) slot -= w.circle;
      arrive(m, h, decay, y);
      const R ja = weight_here * decay, jb = ja * y;
      add(buckets + int64_t(slot) * n, ja, jb, jb * y);
    }
  }
}

// Out of line: few steps get here, and its registers would slow the others.
template <class R>
__device__ __noinline__ int fire(R v, R i, R v_free, R i_free, Four<R> j, const Membrane<R>& m, R dt, bool single, R* g,
                                 R& v_end, bool& still) {
  if (!may_fire(v, i, v_free, i_free, m, dt)) return 0;
  return spikes_of_step(v, i, j.a, j.b, j.c, m, dt, single, g, v_end, still);
}

// Steps of chunk `k`, one block a sample, a thread for each of up to kPer neurons.
template <class R, int kPer, int kThreads>
__global__ void __launch_bounds__(kThreads) steps(Work<R> w, int32_t k) {
  extern __shared__ char shared[];
  const Call<R>& c = w.c;
  const int32_t n = static_cast<int32_t>(c.n), tid = threadIdx.x, threads = blockDim.x;
  const int32_t warps = threads / kWarp, words = warps * kPer;
  // two of each: one barrier a step, since a step writes what the step before the last one read
  R* all_g = reinterpret_cast<R*>(shared);                                                // (2, N, 4)
  uint32_t* masks = reinterpret_cast<uint32_t*>(all_g + size_t(2) * n * kSpikesPerStep);  // (2, words)
  uint8_t* fired = reinterpret_cast<uint8_t*>(masks + 2 * words);                         // (2, N)
  const int64_t s = blockIdx.x, set = s / c.per_set, at = s * n;
  const R dt = c.dt;
  const int32_t t0 = k * w.chunk, t1 = min(t0 + w.chunk, static_cast<int32_t>(c.n_steps));
  const int32_t last = static_cast<int32_t>(c.n_steps), circle = w.circle;
  const bool wraps = w.n_chunks > 1;

  Membrane<R> m[kPer];
  R v[kPer], i[kPer], alpha[kPer], beta[kPer], kappa[kPer], count[kPer], offset[kPer];
  int32_t first[kPer];
  R back_v[kPer], back_i[kPer], back_vi[kPer];
  Four<R> next[kPer][kAhead];
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
    R y, syn, mem;
    m[u].decays(dt, syn, mem, y);
    alpha[u] = syn, beta[u] = mem, kappa[u] = syn * y;
    back_v[u] = 1 / mem, back_i[u] = 1 / syn, back_vi[u] = back_i[u] * m[u].q(-dt);
    v[u] = k && mine ? c.v[at + q] : R(0);
    i[u] = k && mine ? w.current[at + q] : R(0);
    count[u] = k && mine ? c.count[at + q] : R(0);
    offset[u] = k && mine ? c.first_offset[at + q] : R(0);
    first[u] = k && mine ? c.first_step[at + q] : -1;
    RANVIER_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      next[u][a] = Four<R>{0, 0, 0, 0};
      if (mine && t0 + a < t1) {
        Four<R>* place = buckets + int64_t(slot_of(a)) * n + j;
        next[u][a] = fetch(place);
        if (wraps) *place = Four<R>{0, 0, 0, 0};
      }
    }
  }
  int32_t recorded = k ? c.n_spikes[s] : 0, lost = k ? c.overflow[s] : w.bad[s];

  for (int32_t t = t0; t < t1; ++t) {
    const int parity = t & 1;
    R* g_here = all_g + size_t(parity) * n * kSpikesPerStep;
    uint32_t* mask = masks + parity * words;
    uint8_t* number = fired + parity * n;
    Four<R> bucket[kPer];
    R v_start[kPer], i_start[kPer];
    int some = 0;
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      const bool mine = j < n;
      bucket[u] = next[u][0];
      RANVIER_UNROLL
      for (int a = 0; a + 1 < kAhead; ++a) next[u][a] = next[u][a + 1];
      next[u][kAhead - 1] = Four<R>{0, 0, 0, 0};
      if (mine && t + kAhead < t1) {
        Four<R>* place = buckets + int64_t(slot_of(kAhead)) * n + j;
        next[u][kAhead - 1] = fetch(place);
        if (wraps) *place = Four<R>{0, 0, 0, 0};
      }
      const R v_f = v[u] * beta[u] + i[u] * kappa[u] + bucket[u].b, i_f = i[u] * alpha[u] + bucket[u].a;
      v_start[u] = v[u], i_start[u] = i[u];
      // a bound on what `may_fire` computes: no flow rises faster than its largest current
      const R v_b = v_f * back_v[u] + i_f * back_vi[u], i_b = i_f * back_i[u];
      const R ahead = max_(v[u], R(0)) + max_(i[u], R(0)) * dt, behind = max_(v_b, R(0)) + max_(i_b, R(0)) * dt;
      const bool look = max_(max_(ahead, behind), v_f) >= m[u].v_th && mine && !(c.single && first[u] >= 0);
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
        const int64_t place = (s * c.n_steps + t) * n + j;
        if (c.keep) c.v_free[place] = v_f;
        if (c.parameters) c.i_free[place] = i_f;
        if (c.trace) c.v_trace[place] = v[u];
      }
    }
    if (__syncthreads_or(some)) {
      for (int32_t word = 0; word < words; ++word) {
        for (uint32_t bits = mask[word]; bits; bits &= bits - 1) {
          const int32_t source = (word / warps) * threads + (word % warps) * kWarp + __ffs(bits) - 1;
          const int32_t hits = number[source] & 127;
          lost += number[source] >> 7;
          const int64_t synapse = (set * n + source) * n;
          if (c.recurrent) {
            RANVIER_UNROLL
            for (int u = 0; u < kPer; ++u) {
              const int32_t j = tid + u * threads;
              if (j >= n) continue;
              const R weight = __ldg(c.w_rec + synapse + j), d_offset = __ldg(w.rec_offset + synapse + j);
              const int32_t d_step = __ldg(w.rec_step + synapse + j);
              for (int32_t f = 0; f < hits; ++f) {
                int32_t ahead;
                R h, decay, y;
                land(g_here[source * kSpikesPerStep + f], d_step, d_offset, dt, 1, ahead, h);
                if (t + ahead >= last) continue;
                arrive(m[u], h, decay, y);
                const R ja = weight * decay, jb = ja * y, jc = jb * y;
                if (ahead <= kAhead && t + ahead < t1) {
                  RANVIER_UNROLL
                  for (int b = 0; b < kAhead; ++b)
                    if (ahead == b + 1) next[u][b].a += ja, next[u][b].b += jb, next[u][b].c += jc;
                } else {
                  add(buckets + int64_t(slot_of(ahead)) * n + j, ja, jb, jc);
                }
              }
            }
          }
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            if (tid + u * threads != source) continue;
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
  R* sums = reinterpret_cast<R*>(shared);  // (2, kTogether, warps)
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
    R y, syn, mem;
    m[u].decays(dt, syn, mem, y);
    alpha[u] = syn, beta[u] = mem, kappa[u] = syn * y;
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
  int32_t step = r > bottom ? c.spike_step[base + r - 1] : -1;
  int parity = 0;
  Four<R>* adjoint = w.buckets + s * int64_t(circle) * n;
  int32_t slot = static_cast<int32_t>(int64_t(t1 - 1) % circle);
  R v_next[kPer][2];
  RANVIER_UNROLL
  for (int u = 0; u < kPer; ++u) {
    const int32_t j = tid + u * threads;
    RANVIER_UNROLL
    for (int a = 0; a < 2; ++a)
      v_next[u][a] = j < n && t1 - 1 - a >= t0 ? c.v_free[(s * c.n_steps + t1 - 1 - a) * n + j] : R(0);
  }

  for (int32_t t = t1 - 1; t >= t0; --t) {
    R v_free[kPer], change[kPer][5], resets[kPer];
    RANVIER_UNROLL
    for (int u = 0; u < kPer; ++u) {
      const int32_t j = tid + u * threads;
      v_free[u] = v_next[u][0];
      v_next[u][0] = v_next[u][1];
      if (j < n && t - 2 >= t0) v_next[u][1] = c.v_free[(s * c.n_steps + t - 2) * n + j];
      if (c.trace && j < n) lam_v[u] += c.ct_trace[(s * c.n_steps + t) * n + j];
      resets[u] = R(0);
      RANVIER_UNROLL
      for (int q = 0; q < 5; ++q) change[u][q] = R(0);
    }
    while (step == t) {  // up to kTogether records of this step, the same for all threads
      int32_t low = r - 1;
      while (low > bottom && r - low < kTogether && c.spike_step[base + low - 1] == t) --low;
      const int32_t together = r - low;
      R* part = sums + size_t(parity) * kTogether * warps;
      if (c.recurrent) {
        for (int32_t f = 0; f < together; ++f) {
          const int32_t source = c.spike_neuron[base + low + f];
          const R when = c.spike_g[base + low + f];
          const int64_t synapse = (set * n + source) * n;
          R total = 0;
          RANVIER_UNROLL
          for (int u = 0; u < kPer; ++u) {
            const int32_t j = tid + u * threads;
            if (j >= n) continue;
            int32_t ahead;
            R h, decay, y;
            land(when, __ldg(w.rec_step + synapse + j), __ldg(w.rec_offset + synapse + j), dt, 1, ahead, h);
            if (t + ahead >= last) continue;
            int32_t there = slot + ahead;
            if (there >= circle) there -= circle;
            const Four<R> l = adjoint[int64_t(there) * n + j];
            arrive(m[u], h, decay, y);
            total += __ldg(c.w_rec + synapse + j) * slope_of_time(decay, y, m[u].rate_syn, m[u].c, l.a, l.b, l.c);
          }
          total = warp_sum(total);
          if (tid % kWarp == 0) part[f * warps + tid / kWarp] = total;
        }
        __syncthreads();
        parity ^= 1;
      }
      for (int32_t f = 0; f < together; ++f) {
        const int64_t record = base + low + f;
        const int32_t source = c.spike_neuron[record];
        RANVIER_UNROLL
        for (int u = 0; u < kPer; ++u) {
          if (tid + u * threads != source) continue;
          const R when = c.spike_g[record], decay = m[u].grow_mem(when - dt);
          R lam = c.ct_g[record] - lam_v[u] * m[u].v_th * m[u].rate_mem * decay;
          const bool leads = low + f == 0 || c.spike_step[record - 1] != t || c.spike_neuron[record - 1] != source;
          if (leads && first[u] == t) lam += ct_first[u];
          if (c.recurrent)
            for (int32_t q = 0; q < warps; ++q) lam += part[f * warps + q];
          const R* slopes = w.slopes + record * K;
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
      step = r > bottom ? c.spike_step[base + r - 1] : -1;
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
      const R surrogate = silent ? R(0) : ct_count[u] / (over * over);
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

// Derivatives of the synapses for the events of chunk `k`: one block a (source, 32 targets), whose warps share the
// samples; summed in registers, then over the warps in order.
template <class R, bool kSpikes, bool kParameters>
__global__ void __launch_bounds__(kWarp* kGatherWarps) gather(Work<R> w, int32_t k) {
  constexpr int kSums = kParameters ? 4 : 2;
  __shared__ R parts[kGatherWarps][kSums][kWarp];
  const Call<R>& c = w.c;
  const int32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t n = c.n, sources = kSpikes ? n : c.n_inputs, size = kSpikes ? c.capacity : c.n_events;
  const int64_t source = blockIdx.x, set = blockIdx.z, j = blockIdx.y * int64_t(kWarp) + lane;
  const int64_t target = j < n ? j : n - 1;
  const int64_t synapse = (set * sources + source) * n + target;
  const int32_t d_step = (kSpikes ? w.rec_step : w.in_step)[synapse];
  const R d_offset = (kSpikes ? w.rec_offset : w.in_offset)[synapse];
  const R weight = (kSpikes ? c.w_rec : c.w_in)[synapse];
  const Membrane<R> m = membrane(c, set * n + target);
  const int32_t* starts = kSpikes ? w.spike_starts : w.starts;
  const Event<R>* sorted = kSpikes ? w.spike_sorted : w.sorted;
  const int32_t last = static_cast<int32_t>(c.n_steps), circle = w.circle, t0 = k * w.chunk;
  const int32_t base = static_cast<int32_t>(int64_t(t0) % circle) - t0;
  R sums[kSums];
  RANVIER_UNROLL
  for (int q = 0; q < kSums; ++q) sums[q] = R(0);
  for (int64_t s0 = warp; s0 < c.per_set; s0 += kGatherWarps * kWarp) {
    // each lane looks up the events of another sample
    const int64_t ours = s0 + lane * kGatherWarps;
    int32_t begin = 0, end = 0;
    if (ours < c.per_set) {
      const int32_t* x = starts + ((set * c.per_set + ours) * w.n_chunks + k) * (sources + 1) + source;
      begin = x[0], end = x[1];
    }
    unsigned some = __ballot_sync(kAll, begin < end);
    for (; some; some &= some - 1) {
      const int q = __ffs(some) - 1;
      const int32_t from = __shfl_sync(kAll, begin, q), to = __shfl_sync(kAll, end, q);
      const int64_t s = set * c.per_set + s0 + q * kGatherWarps;
      const Four<R>* adjoint = w.buckets + s * int64_t(circle) * n + target;
#pragma unroll 4
      for (int32_t e = from; e < to; ++e) {
        const Event<R> x = sorted[s * size + e];
        int32_t ahead;
        R h, decay, y;
        land(x.offset, d_step, d_offset, c.dt, kSpikes ? 1 : 0, ahead, h);
        const int32_t bucket = x.step + ahead;
        if (bucket >= last) continue;
        int32_t slot = base + bucket;
        if (slot >= circle) slot -= circle;
        const Four<R> l = adjoint[int64_t(slot) * n];
        arrive(m, h, decay, y);
        const R by_weight = slope_of_weight(decay, y, l.a, l.b, l.c);
        sums[0] += by_weight;
        sums[1] += slope_of_time(decay, y, m.rate_syn, m.c, l.a, l.b, l.c);
        if constexpr (kParameters) {
          sums[2] -= h * by_weight;
          sums[3] += slope_of_c<false>(decay, y, h, m.c, l.b, l.c);
        }
      }
    }
  }
  RANVIER_UNROLL
  for (int q = 0; q < kSums; ++q) parts[warp][q][lane] = sums[q];
  __syncthreads();
  if (warp > 0 || j >= n) return;
  RANVIER_UNROLL
  for (int q = 0; q < kSums; ++q) {
    sums[q] = R(0);
    for (int x = 0; x < kGatherWarps; ++x) sums[q] += parts[x][q][lane];
  }
  R* dw = (kSpikes ? c.dw_rec : c.dw_in) + synapse;
  R* dd = (kSpikes ? c.dd_rec : c.dd_in) + synapse;
  const bool newest = k == w.n_chunks - 1;
  *dw = (newest ? R(0) : *dw) + sums[0];
  *dd = (newest ? R(0) : *dd) + weight * sums[1];
  if constexpr (kParameters) {
    R* mem = (kSpikes ? w.tau_rec : w.tau_in) + synapse;
    R* syn = mem + c.n_sets * sources * n;
    *mem = (newest ? R(0) : *mem) + weight * sums[3] * m.rate_mem * m.rate_mem;
    *syn = (newest ? R(0) : *syn) - weight * (sums[2] + sums[3]) * m.rate_syn * m.rate_syn;
  }
}

// Derivatives of the times of the input events of chunk `k`: a warp an event, its lanes share the targets.
template <class R>
__global__ void event_times(Work<R> w, int32_t k) {
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.x, n = c.n, set = s / c.per_set;
  const int32_t lane = threadIdx.x % kWarp, last = static_cast<int32_t>(c.n_steps), t0 = k * w.chunk;
  const int32_t* segment = w.segment + s * (w.n_chunks + 1) + k;
  const int32_t base = static_cast<int32_t>(int64_t(t0) % w.circle) - t0;
  const int32_t warps = gridDim.y * (blockDim.x / kWarp);
  for (int32_t e = segment[0] + blockIdx.y * (blockDim.x / kWarp) + threadIdx.x / kWarp; e < segment[1]; e += warps) {
    const int32_t channel = c.channel[s * c.n_events + e];
    const R time = c.time[s * c.n_events + e];
    if (channel < 0 || channel >= c.n_inputs || time < 0) continue;
    int32_t step;
    R offset, total = 0;
    split_time(time, c.dt, step, offset);
    for (int64_t j = lane; j < n; j += kWarp) {
      const int64_t synapse = (set * c.n_inputs + channel) * n + j;
      int32_t ahead;
      R h, decay, y;
      land(offset, w.in_step[synapse], w.in_offset[synapse], c.dt, 0, ahead, h);
      if (step + ahead >= last) continue;
      int32_t slot = base + step + ahead;
      if (slot >= w.circle) slot -= w.circle;
      const Four<R> l = w.buckets[(s * w.circle + slot) * n + j];
      const Membrane<R> m = membrane(c, set * n + j);
      arrive(m, h, decay, y);
      total += c.w_in[synapse] * slope_of_time(decay, y, m.rate_syn, m.c, l.a, l.b, l.c);
    }
    total = warp_sum(total);
    if (lane == 0) c.dt_event[s * c.n_events + e] = total;
  }
}

// Sums the shares of samples and synapses.
template <class R>
__global__ void sum_parameters(Work<R> w) {
  const Call<R>& c = w.c;
  const int64_t at = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, n = c.n;
  if (at >= c.n_sets * n) return;
  const int64_t set = at / n, j = at % n;
  R tau_mem = 0, tau_syn = 0, v_th = 0;
  for (int64_t s = set * c.per_set; s < (set + 1) * c.per_set; ++s) {
    const Share<R> share = w.shares[s * n + j];
    tau_mem += share.tau_mem, tau_syn += share.tau_syn, v_th += share.v_th;
  }
  auto add_up = [&](const R* parts, int64_t sources) {
    for (int64_t i = 0; i < sources; ++i) {
      const int64_t synapse = (set * sources + i) * n + j;
      tau_mem += parts[synapse], tau_syn += parts[c.n_sets * sources * n + synapse];
    }
  };
  add_up(w.tau_in, c.n_inputs);
  if (c.recurrent) add_up(w.tau_rec, n);
  c.d_tau_mem[at] = tau_mem, c.d_tau_syn[at] = tau_syn, c.d_v_th[at] = v_th;
}

unsigned blocks(int64_t size, int64_t each) { return static_cast<unsigned>((size + each - 1) / each); }

// Remembers the first error of a row of launches.
struct Launches {
  cudaError_t error = cudaSuccess;
  void check(cudaError_t e) {
    if (error == cudaSuccess) error = e;
  }
  void check() { check(cudaGetLastError()); }
};

template <class Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= size_t(48) << 10) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class R>
void prepare(const Work<R>& w, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  const int64_t in = c.n_sets * c.n_inputs * c.n, rec = c.recurrent ? c.n_sets * c.n * c.n : 0;
  if (in) split_delays<<<blocks(in, 256), 256, 0, stream>>>(c.d_in, in, c.dt, w.in_step, w.in_offset), l.check();
  if (rec) split_delays<<<blocks(rec, 256), 256, 0, stream>>>(c.d_rec, rec, c.dt, w.rec_step, w.rec_offset), l.check();
  l.check(cudaMemsetAsync(w.bad, 0, c.n_samples * sizeof(int32_t), stream));
  l.check(cudaMemsetAsync(w.segment, 0, c.n_samples * (w.n_chunks + 1) * sizeof(int32_t), stream));
  const dim3 grid(static_cast<unsigned>(c.n_samples), blocks(c.n_events, 256));
  if (c.n_events) find_segments<<<grid, 256, 0, stream>>>(w), l.check();
}

// Threads of a block of `n` neurons, `per` a thread.
unsigned threads_for(int64_t n, int per) { return blocks(blocks(n, per), kWarp) * kWarp; }

template <class R, int kPer, int kThreads>
void launch_steps(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const unsigned threads = threads_for(w.c.n, kPer);
  const size_t bytes = size_t(2) * w.c.n * kSpikesPerStep * sizeof(R) +
                       size_t(2) * kPer * (threads / kWarp) * sizeof(uint32_t) + size_t(2) * w.c.n;
  l.check(allow_shared(steps<R, kPer, kThreads>, bytes));
  steps<R, kPer, kThreads><<<static_cast<unsigned>(w.c.n_samples), threads, bytes, stream>>>(w, k);
  l.check();
}

template <class R, int kPer, int kThreads, bool kParameters>
void launch_adjoint(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const unsigned threads = threads_for(w.c.n, kPer);
  const size_t bytes = size_t(2) * kTogether * (threads / kWarp) * sizeof(R);
  adjoint_steps<R, kPer, kThreads, kParameters><<<static_cast<unsigned>(w.c.n_samples), threads, bytes, stream>>>(w, k);
  l.check();
}

template <class R>
void launch_forward_chunk(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  const dim3 grid(blocks(c.n, kStage), static_cast<unsigned>(c.n_samples));
  if (c.n_events) scatter<<<grid, kStage, 0, stream>>>(w, k), l.check();
  if (c.n <= 128)
    launch_steps<R, 1, 128>(w, k, stream, l);
  else if (c.n <= 512)
    launch_steps<R, 1, 512>(w, k, stream, l);
  else if (c.n <= 1024)
    launch_steps<R, 1, 1024>(w, k, stream, l);
  else
    launch_steps<R, 2, 1024>(w, k, stream, l);
}

template <class R, bool kParameters>
void launch_backward_chunk(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  if (c.n <= 128)
    launch_adjoint<R, 1, 128, kParameters>(w, k, stream, l);
  else if (c.n <= 512)
    launch_adjoint<R, 1, 512, kParameters>(w, k, stream, l);
  else if (c.n <= 1024)
    launch_adjoint<R, 1, 1024, kParameters>(w, k, stream, l);
  else
    launch_adjoint<R, 2, 1024, kParameters>(w, k, stream, l);
  const unsigned tiles = blocks(c.n, kWarp), sets = static_cast<unsigned>(c.n_sets);
  const dim3 in(static_cast<unsigned>(c.n_inputs), tiles, sets), rec(static_cast<unsigned>(c.n), tiles, sets);
  if (c.n_inputs) gather<R, false, kParameters><<<in, kWarp * kGatherWarps, 0, stream>>>(w, k), l.check();
  if (c.recurrent) gather<R, true, kParameters><<<rec, kWarp * kGatherWarps, 0, stream>>>(w, k), l.check();
  if (c.times && c.n_events) {
    const dim3 grid(static_cast<unsigned>(c.n_samples), blocks(c.n_events, 64));
    event_times<<<grid, 256, 0, stream>>>(w, k), l.check();
  }
}

}  // namespace

template <class R>
size_t lif_forward_scratch(const Call<R>& call) {
  Work<R> w{};
  return arrange(call, nullptr, false, w);
}

template <class R>
size_t lif_backward_scratch(const Call<R>& call) {
  Work<R> w{};
  return arrange(call, nullptr, true, w);
}

template <class R>
cudaError_t lif_forward(const Call<R>& c, void* scratch, cudaStream_t stream) {
  Launches l;
  if (c.n_samples == 0 || c.n == 0) return cudaSuccess;
  Work<R> w{};
  arrange(c, scratch, false, w);
  prepare(w, stream, l);
  l.check(cudaMemsetAsync(w.buckets, 0, c.n_samples * int64_t(w.circle) * c.n * sizeof(Four<R>), stream));
  for (int32_t k = 0; k < w.n_chunks; ++k) launch_forward_chunk(w, k, stream, l);
  return l.error;
}

template <class R>
cudaError_t lif_backward(const Call<R>& c, void* scratch, cudaStream_t stream) {
  Launches l;
  if (c.n_samples == 0 || c.n == 0) return cudaSuccess;
  Work<R> w{};
  arrange(c, scratch, true, w);
  prepare(w, stream, l);
  const unsigned samples = static_cast<unsigned>(c.n_samples), chunks = static_cast<unsigned>(w.n_chunks);
  find_spike_segments<<<samples, 32, 0, stream>>>(w), l.check();
  if (c.n_inputs) sort_events<R, false><<<dim3(chunks, samples), kWarp, 0, stream>>>(w), l.check();
  if (c.recurrent) sort_events<R, true><<<dim3(chunks, samples), kWarp, 0, stream>>>(w), l.check();
  if (c.times) l.check(cudaMemsetAsync(c.dt_event, 0, c.n_samples * c.n_events * sizeof(R), stream));
  const dim3 grid(blocks(c.capacity, 64), samples);
  if (c.capacity && c.parameters) jacobian<R, 8><<<grid, 64, 0, stream>>>(w), l.check();
  if (c.capacity && !c.parameters) jacobian<R, 5><<<grid, 64, 0, stream>>>(w), l.check();
  for (int32_t k = w.n_chunks - 1; k >= 0; --k) {
    if (c.parameters)
      launch_backward_chunk<R, true>(w, k, stream, l);
    else
      launch_backward_chunk<R, false>(w, k, stream, l);
  }
  if (c.parameters) sum_parameters<<<blocks(c.n_sets * c.n, 64), 64, 0, stream>>>(w), l.check();
  return l.error;
}

template size_t lif_forward_scratch(const Call<float>&);
template size_t lif_forward_scratch(const Call<double>&);
template size_t lif_backward_scratch(const Call<float>&);
template size_t lif_backward_scratch(const Call<double>&);
template cudaError_t lif_forward(const Call<float>&, void*, cudaStream_t);
template cudaError_t lif_forward(const Call<double>&, void*, cudaStream_t);
template cudaError_t lif_backward(const Call<float>&, void*, cudaStream_t);
template cudaError_t lif_backward(const Call<double>&, void*, cudaStream_t);

}  // namespace ranvier
