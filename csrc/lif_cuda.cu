// The LIF sequence on the GPU, forward and backward: docs/equations.md, Eq. 5 to 16 and 26 to 31.
//
// A thread owns a neuron of a sample, and with it one column of every array over time, so sums have one order and
// nothing needs a lock: results are the same bits every time. Time is cut into chunks of at most `chunk` steps, so that
// the buckets (forward) and their adjoints (backward) take a bounded piece of memory, a circle of `circle` = chunk +
// longest delay steps.
//
// forward    pack synapses; for each chunk: `scatter` the input events of the chunk into the buckets, then walk its
//            `steps`, one block a sample, where recurrent spikes go into the same buckets
// backward   `jacobian` of every recorded spike (no step waits for another); for each chunk from the last: walk back
//            its `adjoint_steps`, which leave the adjoints of the buckets, then `gather` them: one warp a (source,
//            32 targets) and its share of the samples, summed in registers
#include "arrival.h"
#include "lif_cuda.h"
#include "lif_step.h"
#include "scratch_cuda.h"

namespace ranvier {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kGatherWarps = 8;                 // warps of a block that share the samples of a source
constexpr int kBatch = 8;                       // events whose synapses are fetched together
constexpr int kQuiet = 4;                       // steps without a spike that are walked together, backward
constexpr int kVoltages = 8;                    // steps whose voltages are fetched early, backward
constexpr int kDeliver = 2;                     // sources whose synapses are fetched together
constexpr int kGather = 4;                      // events whose adjoints are fetched together
constexpr int kWindow = 128;                    // spike records kept in shared memory, backward
constexpr int kStage = 128;                     // events staged in shared memory at a time
constexpr int kTogether = 8;                    // spikes of a step whose sums are formed at a time, backward
constexpr size_t kShared = size_t(200) << 10;   // bytes of shared memory that a block may have
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

// A weight and its delay as whole steps and the rest; one load.
template <class R>
struct alignas(4 * sizeof(R)) Synapse {
  R weight, offset;
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
  int32_t chunk, circle, n_chunks, slots;
  Synapse<R>*in, *rec;  // (P, M, N), (P, N, N)
  Four<R>* buckets;     // (S, circle, N)
  R* current;           // (S, N) i between chunks; backward: adjoint of i
  R* lam;               // (S, N) adjoint of v between chunks
  int32_t* bad;         // (S,) events that cannot be used
  int32_t* segment;     // (S, n_chunks + 1) first event of each chunk
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
size_t arrange(const Call<R>& c, void* scratch, bool backward, Work<R>& w) {
  w.c = c;
  const int64_t slots = c.n_slots < c.n_steps ? c.n_slots : c.n_steps;
  const int64_t row = c.n_samples * c.n * int64_t(sizeof(Four<R>));
  // half of what the voltages take, where that is more
  const int64_t voltages = c.n_samples * c.n * c.n_steps * int64_t(sizeof(R)) / 2;
  const int64_t bytes = voltages > int64_t(kBuckets) ? voltages : int64_t(kBuckets);
  int64_t chunk = bytes / (row > 0 ? row : 1) - slots;
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
  w.slots = static_cast<int32_t>(slots);
  w.n_chunks = static_cast<int32_t>((c.n_steps + w.chunk - 1) / w.chunk);
  Layout layout{static_cast<char*>(scratch)};
  const size_t s = c.n_samples, p = c.n_sets, n = c.n, m = c.n_inputs, in = p * m * n;
  const size_t rec = c.recurrent ? p * n * n : 0, chunks = w.n_chunks;
  layout.take(w.in, in), layout.take(w.rec, rec);
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
__device__ __forceinline__ Synapse<float> load(const Synapse<float>* place) {
  const float4 x = __ldg(reinterpret_cast<const float4*>(place));
  return {x.x, x.y, __float_as_int(x.z)};
}
__device__ __forceinline__ Synapse<double> load(const Synapse<double>* place) {
  const double2 x = __ldg(reinterpret_cast<const double2*>(place));
  return {x.x, x.y, __ldg(&place->step)};
}
// Copies from global to shared memory that go on while the thread does; each closes a group, and `arrived` waits until
// at most kOpen groups are under way.
template <class T>
__device__ __forceinline__ void copy(T* to, const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16 || sizeof(T) == 32);
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (sizeof(T) <= 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(sizeof(T)) : "memory");
  } else {
    for (unsigned k = 0; k < sizeof(T); k += 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at + k),
                   "l"(reinterpret_cast<const char*>(from) + k)
                   : "memory");
  }
}
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kOpen>
__device__ __forceinline__ void arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
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

// The constants of a step (Eq. 6), to full accuracy: their errors add up over the steps.
template <class R>
__device__ __forceinline__ void constants(const Membrane<R>& m, R dt, R& alpha, R& beta, R& kappa) {
  alpha = std::exp(-dt / m.tau_syn), beta = std::exp(-dt / m.tau_mem), kappa = alpha * m.q(dt);
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
// Whether polynomials without a split of the argument give both for all neurons of the warp: nearly always.
template <class R>
__device__ __forceinline__ bool near_for_all(const Membrane<R>& m, R dt) {
  const R most = R(2.5) * dt;
  return __all_sync(kAll, most * m.rate_syn < R(kNearest) && most * std::fabs(m.c) < R(kNearest));
}
template <class R>
__device__ __forceinline__ void arrive_either(bool near, const Membrane<R>& m, R h, R& decay, R& y) {
  if (near)
    ranvier::arrive<true>(h, m.rate_syn, m.c, decay, y);
  else
    arrive(m, h, decay, y);
}
template <bool kNear, class R>
__device__ __forceinline__ void arrive_as(const Membrane<R>& m, R h, R& decay, R& y) {
  if constexpr (kNear)
    ranvier::arrive<true>(h, m.rate_syn, m.c, decay, y);
  else
    arrive(m, h, decay, y);
}

template <class R>
__global__ void pack_synapses(const R* weight, const R* delay, int64_t size, R dt, Synapse<R>* out) {
  const int64_t k = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (k >= size) return;
  Synapse<R> x;
  x.weight = weight[k];
  split_time(delay[k], dt, x.step, x.offset);
  out[k] = x;
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
__global__ void sort_events(Work<R> w, bool in_shared) {
  const int64_t s = blockIdx.y, k = blockIdx.x, size = kSpikes ? w.c.capacity : w.c.n_events;
  const int32_t lane = threadIdx.x, sources = static_cast<int32_t>(kSpikes ? w.c.n : w.c.n_inputs);
  const int32_t* segment = (kSpikes ? w.spike_segment : w.segment) + s * (w.n_chunks + 1) + k;
  const int32_t* key = (kSpikes ? w.c.spike_neuron : w.c.channel) + s * size;
  const int64_t table = (s * w.n_chunks + k) * (sources + 1);
  int32_t* starts = (kSpikes ? w.spike_starts : w.starts) + table;
  extern __shared__ char shared[];
  int32_t* cursors = in_shared ? reinterpret_cast<int32_t*>(shared) : (kSpikes ? w.spike_cursors : w.cursors) + table;
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

// An input event, staged in shared memory.
template <class R>
struct Staged {
  R offset;
  int32_t step, channel;  // channel -1: none
};
template <class R>
__device__ __forceinline__ Staged<R> stage(const Call<R>& c, int64_t s, int32_t e, int32_t end) {
  Staged<R> x{R(0), 0, -1};
  if (e < end) {
    const R time = c.time[s * c.n_events + e];
    const int32_t channel = c.channel[s * c.n_events + e];
    split_time(time, c.dt, x.step, x.offset);
    if (time >= 0 && channel >= 0 && channel < c.n_inputs) x.channel = channel;
  }
  return x;
}

// Input events of chunk `k` into the buckets. A warp takes all events of its sample to kLanes neurons, in their order;
// the steps that they can reach lie in shared memory (slots, 3, kLanes), and each is written out when its time has
// come.
template <class R, int kLanes>
struct Scatter {
  const Call<R>& c;
  const Membrane<R>& m;
  const Synapse<R>* synapses;  // (M, N) of this neuron
  Four<R>* buckets;            // (circle, N) of this neuron
  R* ring;                     // (slots, 3, kLanes) of this neuron
  int32_t n, slots, circle;
  int32_t now, place, slot;  // step whose turn it is, in the ring, in the circle

  __device__ R& cell(int32_t p, int32_t q) const { return ring[(p * 3 + q) * kLanes]; }
  __device__ int32_t slot_of(int32_t ahead) const {
    return slot + ahead >= circle ? slot + ahead - circle : slot + ahead;
  }
  __device__ void write_out(int32_t until) {
    RANVIER_ROLLED
    for (; now < until; ++now) {
      buckets[int64_t(slot) * n] = Four<R>{cell(place, 0), cell(place, 1), cell(place, 2), R(0)};
      cell(place, 0) = cell(place, 1) = cell(place, 2) = R(0);
      if (++place == slots) place = 0;
      if (++slot == circle) slot = 0;
    }
  }
  template <bool kNear>
  __device__ void take(const Staged<R>* staged, int32_t count) {
    const R dt = c.dt;
    Synapse<R> next[kBatch];
    auto order = [&](int32_t q) {
      RANVIER_UNROLL
      for (int u = 0; u < kBatch; ++u) next[u] = load(synapses + max(staged[q + u].channel, 0) * int64_t(n));
    };
    order(0);
    for (int32_t q = 0; q < count; q += kBatch) {
      Synapse<R> synapse[kBatch];
      RANVIER_UNROLL
      for (int u = 0; u < kBatch; ++u) synapse[u] = next[u];
      if (q + kBatch < count) order(q + kBatch);
      // what arrives, all at once; then into the ring, one after another
      R ja[kBatch], jb[kBatch], jc[kBatch];
      int32_t when[kBatch];
      RANVIER_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        // `land` for an input, whose step is never moved
        const R x = staged[q + u].offset + synapse[u].offset;
        const bool one = x >= dt, two = x >= 2 * dt;
        R decay, reach;
        arrive_as<kNear>(m, (two ? 3 * dt : one ? 2 * dt : dt) - x, decay, reach);
        when[u] = synapse[u].step + one + two;
        const bool reached = when[u] < slots;  // else behind the end of the run
        when[u] = reached ? when[u] : 0;
        ja[u] = reached ? synapse[u].weight * decay : R(0), jb[u] = ja[u] * reach, jc[u] = jb[u] * reach;
      }
      RANVIER_UNROLL
      for (int u = 0; u < kBatch; ++u) {
        if (staged[q + u].channel < 0) continue;
        const int32_t sent = staged[q + u].step;
        if (sent > now) write_out(sent);
        int32_t p = place + when[u];
        if (p >= slots) p -= slots;
        cell(p, 0) += ja[u], cell(p, 1) += jb[u], cell(p, 2) += jc[u];
      }
    }
  }
};

template <class R, int kLanes>
__global__ void __launch_bounds__(kWarp) scatter(Work<R> w, int32_t k) {
  extern __shared__ char shared[];
  __shared__ Staged<R> staged[kStage];
  const Call<R>& c = w.c;
  const int32_t lane = threadIdx.x, n = static_cast<int32_t>(c.n);
  const int64_t s = blockIdx.x, j = blockIdx.y * int64_t(kLanes) + lane, set = s / c.per_set;
  const bool mine = lane < kLanes && j < n;
  const int64_t target = mine ? j : 0;
  const Membrane<R> m = membrane(c, set * n + target);
  const int32_t begin = w.segment[s * (w.n_chunks + 1) + k], end = w.segment[s * (w.n_chunks + 1) + k + 1];
  const int32_t last = static_cast<int32_t>(c.n_steps), t0 = k * w.chunk, t1 = min(t0 + w.chunk, last);
  Scatter<R, kLanes> to{c,
                        m,
                        w.in + set * c.n_inputs * n + target,
                        w.buckets + s * int64_t(w.circle) * n + target,
                        reinterpret_cast<R*>(shared) + lane % kLanes,
                        n,
                        w.slots,
                        w.circle,
                        t0,
                        0,
                        static_cast<int32_t>(int64_t(t0) % w.circle)};
  if (mine) {
    for (int32_t a = 0; a < w.slots; ++a) {
      Four<R> x{0, 0, 0, 0};
      if (k && t0 + a < last) x = fetch(to.buckets + int64_t(to.slot_of(a)) * n);
      to.cell(a, 0) = x.a, to.cell(a, 1) = x.b, to.cell(a, 2) = x.c;
    }
  }
  const bool near = near_for_all(m, c.dt);
  for (int32_t first = begin; first < end; first += kStage) {
    __syncwarp();
    RANVIER_UNROLL
    for (int32_t q = lane; q < kStage; q += kWarp) staged[q] = stage(c, s, first + q, end);
    __syncwarp();
    if (!mine) continue;
    const int32_t count = min(kStage, end - first);
    if (near)
      to.template take<true>(staged, count);
    else
      to.template take<false>(staged, count);
  }
  if (!mine) return;
  to.write_out(t1);
  for (int32_t a = 0; a < w.slots && t1 + a < last; ++a) {
    int32_t p = to.place + a;
    if (p >= w.slots) p -= w.slots;
    to.buckets[int64_t(to.slot_of(a)) * n] = Four<R>{to.cell(p, 0), to.cell(p, 1), to.cell(p, 2), R(0)};
  }
}

// The same for delays that are too long for shared memory: straight into the buckets, which `clear` has set to 0.
template <class R>
__global__ void __launch_bounds__(kStage) scatter_far(Work<R> w, int32_t k) {
  __shared__ Staged<R> staged[kStage];
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.x, j = blockIdx.y * int64_t(kStage) + threadIdx.x, n = c.n, set = s / c.per_set;
  const bool mine = j < n;
  const Synapse<R>* synapses = w.in + set * c.n_inputs * n + (mine ? j : 0);
  const Membrane<R> m = membrane(c, set * n + (mine ? j : 0));
  Four<R>* buckets = w.buckets + s * int64_t(w.circle) * n + j;
  const int32_t begin = w.segment[s * (w.n_chunks + 1) + k], end = w.segment[s * (w.n_chunks + 1) + k + 1];
  const int32_t last = static_cast<int32_t>(c.n_steps), t0 = k * w.chunk;
  const int32_t base = static_cast<int32_t>(int64_t(t0) % w.circle) - t0;
  for (int32_t first = begin; first < end; first += kStage) {
    __syncthreads();
    staged[threadIdx.x] = stage(c, s, first + static_cast<int32_t>(threadIdx.x), end);
    __syncthreads();
    const int32_t here = mine ? min(kStage, end - first) : 0;
    for (int32_t q = 0; q < here; ++q) {
      const Staged<R> x = staged[q];
      if (x.channel < 0) continue;
      const Synapse<R> synapse = load(synapses + int64_t(x.channel) * n);
      int32_t ahead;
      R h, decay, reach;
      land(x.offset, synapse.step, synapse.offset, c.dt, 0, ahead, h);
      if (ahead >= w.slots || x.step + ahead >= last) continue;
      int32_t slot = base + x.step + ahead;
      if (slot >= w.circle) slot -= w.circle;
      arrive(m, h, decay, reach);
      const R ja = synapse.weight * decay, jb = ja * reach;
      add(buckets + int64_t(slot) * n, ja, jb, jb * reach);
    }
  }
}

// Sets the buckets of steps [from, to) to 0.
template <class R>
__global__ void clear(Work<R> w, int32_t from, int32_t to) {
  const int64_t s = blockIdx.x, row = w.c.n;
  for (int64_t x = blockIdx.y * int64_t(blockDim.x) + threadIdx.x; x < (to - from) * row;
       x += int64_t(gridDim.y) * blockDim.x) {
    const int64_t slot = (from + x / row) % w.circle;
    w.buckets[(s * w.circle + slot) * row + x % row] = Four<R>{0, 0, 0, 0};
  }
}

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
  for (int u = 0; u < kPer; ++u) near = near && near_for_all(m[u], dt);
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
  for (int u = 0; u < kPer; ++u) near = near && near_for_all(m[u], dt);
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

// Derivatives of the synapses for the events of chunk `k`: one block a (source, 32 targets), whose warps share the
// samples; summed in registers, then over the warps in order.
template <class R, bool kSpikes, bool kParameters, bool kNear>
__device__ __forceinline__ void gather_source(const Work<R>& w, int32_t k, int64_t source,
                                              R (*parts)[kParameters ? 4 : 2][kWarp]) {
  constexpr int kSums = kParameters ? 4 : 2;
  const Call<R>& c = w.c;
  const int32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t n = c.n, sources = kSpikes ? n : c.n_inputs, size = kSpikes ? c.capacity : c.n_events;
  const int64_t set = blockIdx.z, j = blockIdx.y * int64_t(kWarp) + lane;
  const int64_t target = j < n ? j : n - 1;
  const int64_t synapse = (set * sources + source) * n + target;
  const Synapse<R> own = load((kSpikes ? w.rec : w.in) + synapse);
  const Membrane<R> m = membrane(c, set * n + target);
  const int32_t* starts = kSpikes ? w.spike_starts : w.starts;
  const Event<R>* sorted = kSpikes ? w.spike_sorted : w.sorted;
  const int32_t last = static_cast<int32_t>(c.n_steps), circle = w.circle, t0 = k * w.chunk;
  const int32_t base = static_cast<int32_t>(int64_t(t0) % circle) - t0;
  const int32_t most = max(w.slots - 1, kSpikes ? 1 : 0);
  const Four<R>* adjoint = w.buckets + target;
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
    // the events of all these samples in a row: `upto` counts those up to this lane's sample
    int32_t upto = end - begin;
    for (int o = 1; o < kWarp; o *= 2) {
      const int32_t left = __shfl_up_sync(kAll, upto, o);
      if (lane >= o) upto += left;
    }
    const int32_t total = __shfl_sync(kAll, upto, kWarp - 1);
    for (int32_t first = 0; first < total; first += kWarp) {
      // each lane fetches an event: the first sample whose count passes its number has it
      const int32_t number = first + lane;
      int q = 0;
      RANVIER_UNROLL
      for (int o = kWarp / 2; o > 0; o /= 2)
        if (__shfl_sync(kAll, upto, q + o - 1) <= number) q += o;
      q = min(q, kWarp - 1);
      const int32_t before = __shfl_sync(kAll, upto - (end - begin), q), from = __shfl_sync(kAll, begin, q);
      const int32_t s = static_cast<int32_t>(set * c.per_set + s0) + q * kGatherWarps;
      Event<R> x{R(0), last};
      if (number < total) x = sorted[s * size + from + number - before];
      const int32_t count = min(kWarp, total - first);
      for (int32_t e = 0; e < count; e += kGather) {
        // the loads of several events together
        Four<R> l[kGather];
        R h[kGather];
        RANVIER_UNROLL
        for (int u = 0; u < kGather; ++u) {
          const R offset = __shfl_sync(kAll, x.offset, e + u);
          const int32_t sent = __shfl_sync(kAll, x.step, e + u), sample = __shfl_sync(kAll, s, e + u);
          int32_t ahead;
          land(offset, own.step, own.offset, c.dt, kSpikes ? 1 : 0, ahead, h[u]);
          const int32_t bucket = sent + ahead;
          int32_t slot = base + bucket;
          if (slot >= circle) slot -= circle;
          l[u] = Four<R>{0, 0, 0, 0};
          if (ahead <= most && bucket < last) l[u] = adjoint[(sample * int64_t(circle) + slot) * n];
        }
        RANVIER_UNROLL
        for (int u = 0; u < kGather; ++u) {
          R decay, y;
          arrive_as<kNear>(m, h[u], decay, y);
          const R by_weight = slope_of_weight(decay, y, l[u].a, l[u].b, l[u].c);
          sums[0] += by_weight;
          sums[1] += slope_of_time(decay, y, m.rate_syn, m.c, l[u].a, l[u].b, l[u].c);
          if constexpr (kParameters) {
            sums[2] -= h[u] * by_weight;
            sums[3] += slope_of_c<false>(decay, y, h[u], m.c, l[u].b, l[u].c);
          }
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
  *dd = (newest ? R(0) : *dd) + own.weight * sums[1];
  if constexpr (kParameters) {
    R* mem = (kSpikes ? w.tau_rec : w.tau_in) + synapse;
    R* syn = mem + c.n_sets * sources * n;
    *mem = (newest ? R(0) : *mem) + own.weight * sums[3] * m.rate_mem * m.rate_mem;
    *syn = (newest ? R(0) : *syn) - own.weight * (sums[2] + sums[3]) * m.rate_syn * m.rate_syn;
  }
}

template <class R, bool kParameters>
__global__ void __launch_bounds__(kWarp* kGatherWarps, sizeof(R) == 4 ? 5 : 3) gather(Work<R> w, int32_t k) {
  __shared__ R parts[kGatherWarps][kParameters ? 4 : 2][kWarp];
  const int64_t x = blockIdx.x, neurons = w.c.recurrent ? w.c.n : 0, lane = threadIdx.x % kWarp;
  const int64_t j = blockIdx.y * int64_t(kWarp) + lane;
  const bool near = near_for_all(membrane(w.c, blockIdx.z * w.c.n + (j < w.c.n ? j : 0)), w.c.dt);
  // all combinations are code of their own: the loops are short, and a branch in them costs
  if (x < neurons) {
    if (near)
      gather_source<R, true, kParameters, true>(w, k, x, parts);
    else
      gather_source<R, true, kParameters, false>(w, k, x, parts);
  } else {
    if (near)
      gather_source<R, false, kParameters, true>(w, k, x - neurons, parts);
    else
      gather_source<R, false, kParameters, false>(w, k, x - neurons, parts);
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
      const Synapse<R> x = load(w.in + synapse);
      land(offset, x.step, x.offset, c.dt, 0, ahead, h);
      if (ahead >= w.slots || step + ahead >= last) continue;
      int32_t slot = base + step + ahead;
      if (slot >= w.circle) slot -= w.circle;
      const Four<R> l = w.buckets[(s * w.circle + slot) * n + j];
      const Membrane<R> m = membrane(c, set * n + j);
      arrive(m, h, decay, y);
      total += x.weight * slope_of_time(decay, y, m.rate_syn, m.c, l.a, l.b, l.c);
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
  if (bytes <= size_t(40) << 10) return cudaSuccess;  // what is static counts too
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class R>
void prepare(const Work<R>& w, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  const int64_t in = c.n_sets * c.n_inputs * c.n, rec = c.recurrent ? c.n_sets * c.n * c.n : 0;
  if (in) pack_synapses<<<blocks(in, 256), 256, 0, stream>>>(c.w_in, c.d_in, in, c.dt, w.in), l.check();
  if (rec) pack_synapses<<<blocks(rec, 256), 256, 0, stream>>>(c.w_rec, c.d_rec, rec, c.dt, w.rec), l.check();
  l.check(cudaMemsetAsync(w.bad, 0, c.n_samples * sizeof(int32_t), stream));
  l.check(cudaMemsetAsync(w.segment, 0, c.n_samples * (w.n_chunks + 1) * sizeof(int32_t), stream));
  const dim3 grid(static_cast<unsigned>(c.n_samples), blocks(c.n_events, 256));
  if (c.n_events) find_segments<<<grid, 256, 0, stream>>>(w), l.check();
}

// Threads of a block of `n` neurons, `per` a thread.
unsigned threads_for(int64_t n, int per) { return blocks(blocks(n, per), kWarp) * kWarp; }

template <class R>
size_t bytes_of_steps(int64_t n, int per, unsigned threads, int ahead) {
  return size_t(ahead) * per * threads * sizeof(Four<R>) + size_t(2) * n * kSpikesPerStep * sizeof(R) +
         size_t(2) * per * (threads / kWarp) * sizeof(uint32_t) + size_t(2) * n;
}

template <class R, int kPer, int kThreads>
void launch_steps(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const unsigned threads = threads_for(w.c.n, kPer);
  const size_t bytes = bytes_of_steps<R>(w.c.n, kPer, threads, kAheadOf<kThreads>);
  l.check(allow_shared(steps<R, kPer, kThreads>, bytes));
  steps<R, kPer, kThreads><<<static_cast<unsigned>(w.c.n_samples), threads, bytes, stream>>>(w, k);
  l.check();
}

template <class R, int kPer, int kThreads, bool kParameters>
void launch_adjoint(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const unsigned threads = threads_for(w.c.n, kPer);
  const size_t bytes = (size_t(kVoltages) * kPer * threads + 2 * kTogether * (threads / kWarp) + kWindow) * sizeof(R) +
                       size_t(2) * kWindow * sizeof(int32_t);
  l.check(allow_shared(adjoint_steps<R, kPer, kThreads, kParameters>, bytes));
  adjoint_steps<R, kPer, kThreads, kParameters><<<static_cast<unsigned>(w.c.n_samples), threads, bytes, stream>>>(w, k);
  l.check();
}

template <class R, int kLanes>
void launch_near(const Work<R>& w, int32_t k, size_t bytes, cudaStream_t stream, Launches& l) {
  l.check(allow_shared(scatter<R, kLanes>, bytes));
  const dim3 grid(static_cast<unsigned>(w.c.n_samples), blocks(w.c.n, kLanes));
  scatter<R, kLanes><<<grid, kWarp, bytes, stream>>>(w, k), l.check();
}

template <class R>
void launch_scatter(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  const size_t lane = size_t(w.slots) * 3 * sizeof(R);
  if (32 * lane <= kShared) return launch_near<R, 32>(w, k, 32 * lane, stream, l);
  if (16 * lane <= kShared) return launch_near<R, 16>(w, k, 16 * lane, stream, l);
  if (8 * lane <= kShared) return launch_near<R, 8>(w, k, 8 * lane, stream, l);
  const unsigned samples = static_cast<unsigned>(c.n_samples);
  const int32_t t0 = k * w.chunk, last = static_cast<int32_t>(c.n_steps);
  const int32_t t1 = t0 + w.chunk + w.slots < last ? t0 + w.chunk + w.slots : last, from = k ? t0 + w.slots : 0;
  if (from < t1) clear<<<dim3(samples, 64), 256, 0, stream>>>(w, from, t1), l.check();
  scatter_far<<<dim3(samples, blocks(c.n, kStage)), kStage, 0, stream>>>(w, k), l.check();
}

template <class R>
void launch_forward_chunk(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  launch_scatter(w, k, stream, l);
  if (c.n <= 128)
    launch_steps<R, 1, 128>(w, k, stream, l);
  else if (c.n <= 512)
    launch_steps<R, 1, 512>(w, k, stream, l);
  else if (c.n <= 1024)
    launch_steps<R, 1, 1024>(w, k, stream, l);
  else
    launch_steps<R, 2, 1024>(w, k, stream, l);
}

template <class R, bool kSpikes>
void launch_sort(const Work<R>& w, int64_t sources, cudaStream_t stream, Launches& l) {
  const size_t bytes = (sources + 1) * sizeof(int32_t);
  const bool in_shared = bytes <= size_t(48) << 10;
  const dim3 grid(static_cast<unsigned>(w.n_chunks), static_cast<unsigned>(w.c.n_samples));
  sort_events<R, kSpikes><<<grid, kWarp, in_shared ? bytes : 0, stream>>>(w, in_shared), l.check();
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
  const unsigned sources = static_cast<unsigned>(c.n_inputs + (c.recurrent ? c.n : 0));
  if (sources) gather<R, kParameters><<<dim3(sources, tiles, sets), kWarp * kGatherWarps, 0, stream>>>(w, k), l.check();
  if (c.times && c.n_events) {
    const dim3 grid(static_cast<unsigned>(c.n_samples), blocks(c.n_events, 64));
    event_times<<<grid, 256, 0, stream>>>(w, k), l.check();
  }
}

}  // namespace

template <class R>
int64_t lif_most_neurons() {
  return sizeof(R) == 4 ? 2048 : 1024;
}

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
  if (c.n_inputs) launch_sort<R, false>(w, c.n_inputs, stream, l);
  if (c.recurrent) launch_sort<R, true>(w, c.n, stream, l);
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

template int64_t lif_most_neurons<float>();
template int64_t lif_most_neurons<double>();
template size_t lif_forward_scratch(const Call<float>&);
template size_t lif_forward_scratch(const Call<double>&);
template size_t lif_backward_scratch(const Call<float>&);
template size_t lif_backward_scratch(const Call<double>&);
template cudaError_t lif_forward(const Call<float>&, void*, cudaStream_t);
template cudaError_t lif_forward(const Call<double>&, void*, cudaStream_t);
template cudaError_t lif_backward(const Call<float>&, void*, cudaStream_t);
template cudaError_t lif_backward(const Call<double>&, void*, cudaStream_t);

}  // namespace ranvier
