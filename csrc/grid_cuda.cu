// The grid scheme on the GPU, forward and backward: docs/equations.md, Eq. 16 to 21 and the walk behind them.
//
// A block walks a sample, step by step. A thread owns a neuron (kOwn of them in large networks): its state in registers
// and one column of every array over time and of every sum. So sums have one order, nothing needs a lock, and results
// are the same bits every time. What arrives in the coming steps lies in a ring of rows, one a step, a few delays long:
// in shared memory where that has room (its columns are a multiple of the banks, so threads never collide), else in
// device memory.
//
// prepare    `build_table`: weight and whole steps of each synapse side by side; `index_events` (`index_spikes`): where
//            the events (spike records) of each step begin
// forward    `walk`: the neurons that fire are told to the block as one bit each, in two buffers, so that a step has
// one
//            barrier
// backward   `walk_back`: the same walk from the end; the ring holds the adjoints of arrivals. Each event and each
// spike
//            adds what it finds there to its source's row of the block's own sums. These additions go to memory that no
//            other thread touches, and nothing waits for them. A spike's own adjoint is a sum over the block.
//            `add_up`: the sums of the blocks in order, those of the delays times the weight
//
// A step's events and spikes are known long before: `Feed` fetches their sources two steps and their synapses one step
// early. Work: a read-modify-write in shared memory an arrival, and two additions in device memory, backward.
#include <cuda_pipeline.h>

#include "grid_cuda.h"
#include "grid_step.h"
#include "positions_cuda.h"
#include "scratch_cuda.h"
#include "warp_cuda.h"

namespace ranvier {
namespace {

using namespace device;

constexpr int kThreads = 512;              // of a walking block, at most
constexpr int kTogether = 8;               // spikes of a step whose sums over the block are formed at a time
constexpr int kRows = 8;                   // voltages on their way from memory, backward
constexpr int64_t kBlocks = 512;           // walking blocks that have sums, or a ring in device memory, of their own
constexpr size_t kSums = size_t(1) << 30;  // bytes aimed at for these sums

template <class R>
struct alignas(2 * sizeof(R)) Synapse {
  R w;
  int32_t steps;
};
template <class R>
struct alignas(2 * sizeof(R)) Pair {
  R weight, time;  // adjoints of the weight and, per weight 1, of the time of an arrival
};

// A call, its scratch and what follows from its sizes.
template <class R>
struct Work {
  GridCall<R> c;
  int32_t sources;       // rows of the table: M, and N more if recurrent
  int32_t slots;         // L: rows of the ring
  int32_t stride;        // columns of the ring
  int64_t blocks;        // that walk
  int64_t parts;         // backward: of a parameter set's samples
  Synapse<R>* table;     // (P, sources, N)
  int32_t* bad;          // (S,) events that cannot be used
  int32_t* event_begin;  // (S, T + 1)
  R* ring;               // (blocks, L, stride), if it is in device memory; backward: of Pair
  int32_t* spike_begin;  // (S, T + 1)
  Pair<R>* sums;         // (P, parts, sources, N)
  R* neuron_sums;        // (P, parts, 8, N)
  R* event_sums;         // (S, E, warps) sums over the neurons of a warp
};

// How a walking block is cut: threads, and neurons a thread.
struct Shape {
  int own, threads;
  explicit Shape(int64_t n) {
    own = n <= kThreads ? 1 : (n <= 4 * kThreads ? 4 : 16);
    threads = static_cast<int>((n + own - 1) / own + kWarp - 1) / kWarp * kWarp;
  }
  int warps() const { return threads / kWarp; }
};

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of shared memory beside the ring: bits of who fires, or partial sums and voltages.
template <class R>
size_t small_shared(const Work<R>& w, bool backward) {
  const Shape shape(w.c.n);
  if (!backward) return round_up(2 * shape.own * shape.warps() * sizeof(uint32_t), 16);
  return round_up(2 * kTogether * shape.warps() * sizeof(R), 16) +
         round_up(int64_t(kRows) * shape.own * shape.threads * sizeof(R), 16);
}

template <class R>
size_t ring_bytes(const Work<R>& w, bool backward) {
  return size_t(w.slots) * w.stride * (backward ? sizeof(Pair<R>) : sizeof(R));
}

// Whether the ring lies in shared memory: it fits there beside the rest.
template <class R>
bool ring_is_shared(const Work<R>& w, bool backward) {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return false;
  return Shape(w.c.n).own == 1 && ring_bytes(w, backward) + small_shared(w, backward) <= size_t(most);
}

template <class R>
size_t arrange(const GridCall<R>& c, void* scratch, bool backward, Work<R>& w) {
  w.c = c;
  w.sources = static_cast<int32_t>(c.n_inputs + (c.recurrent ? c.n : 0));
  w.slots = static_cast<int32_t>(c.n_slots < c.n_steps ? c.n_slots : c.n_steps);
  w.stride = static_cast<int32_t>(round_up(c.n, kWarp));
  const size_t s = c.n_samples, p = c.n_sets, n = c.n, row = size_t(w.sources) * n;
  const bool shared = ring_is_shared(w, backward);
  if (backward) {
    const int64_t each = int64_t(row * sizeof(Pair<R>) + n * kGridParameters * sizeof(R));
    int64_t most = int64_t(kSums) / (each > 0 ? each : 1);
    most = (most < kBlocks ? most : kBlocks) / (c.n_sets > 0 ? c.n_sets : 1);
    w.parts = c.per_set < most ? c.per_set : most;
    if (w.parts < 1) w.parts = 1;
    w.blocks = c.n_sets * w.parts;
  } else {
    w.blocks = shared || c.n_samples < kBlocks ? c.n_samples : kBlocks;
  }
  Layout layout{static_cast<char*>(scratch)};
  layout.take(w.table, p * row);
  layout.take(w.bad, s);
  layout.take(w.event_begin, s * (c.n_steps + 1));
  layout.take(w.ring, shared ? 0 : w.blocks * ring_bytes(w, backward) / sizeof(R));
  if (backward) {
    if (c.positions.dims)
      layout.take(w.c.dd_in, p * c.n_inputs * n), layout.take(w.c.dd_rec, p * (row - c.n_inputs * n));
    layout.take(w.spike_begin, s * (c.n_steps + 1));
    layout.take(w.sums, p * w.parts * row);
    layout.take(w.neuron_sums, c.parameters ? p * w.parts * kGridParameters * n : 0);
    layout.take(w.event_sums, c.times ? s * c.n_events * Shape(c.n).warps() : 0);
  }
  return layout.used;
}

// Adds to a pair that no other thread touches; it need not wait for memory.
template <class R>
__device__ __forceinline__ void add(Pair<R>* place, const Pair<R>& x) {
  atomicAdd(&place->weight, x.weight);
  atomicAdd(&place->time, x.time);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void add(Pair<float>* place, const Pair<float>& x) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(place), "f"(x.weight), "f"(x.time));
}
#endif

// A thread a synapse.
template <class R>
__global__ void build_table(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = int64_t(w.sources) * c.n;
  if (k >= c.n_sets * row) return;
  const int64_t set = k / row, at = k % row, in = c.n_inputs * c.n;
  const bool input = at < in;
  const int64_t from = input ? set * in + at : set * (row - in) + at - in;
  const int32_t most = static_cast<int32_t>(c.n_slots - 1 < c.n_steps ? c.n_slots - 1 : c.n_steps);
  Synapse<R> out;
  out.w = input ? c.w_in[from] : c.w_rec[from];
  const int64_t source = at / c.n, target = at % c.n;
  const R delay = input ? delays_in(c).of(set, source, target) : delays_rec(c).of(set, source - c.n_inputs, target);
  out.steps = delay_steps(delay, c.dt, most);
  w.table[k] = out;
}

// begin[t] for t in (previous, step] becomes k: the steps between two neighbours of a sorted list.
__device__ __forceinline__ void mark(int32_t* begin, int32_t previous, int32_t step, int32_t k) {
  for (int32_t t = previous + 1; t <= step; ++t) begin[t] = k;
}

// A block a sample. Events were perhaps never checked (Events.from_times does it): one that is out of order, before 0
// or of a channel that does not exist would become an address, so it makes the whole sample's events unusable.
template <class R>
__global__ void index_events(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int64_t s = blockIdx.x;
  const R* time = c.time + s * c.n_events;
  const int32_t* channel = c.channel + s * c.n_events;
  int32_t* begin = w.event_begin + s * (c.n_steps + 1);
  const int32_t end = static_cast<int32_t>(c.n_steps), n_events = static_cast<int32_t>(c.n_events);
  const auto step_of = [&](int32_t e) {
    const R x = time[e];
    if (x < 0) return 0;
    return x < c.limit && x / c.dt < static_cast<R>(c.n_steps) ? static_cast<int32_t>(x / c.dt) : end;
  };
  if (n_events == 0 && threadIdx.x == 0) mark(begin, -1, end, 0);
  for (int32_t e = threadIdx.x; e < n_events; e += blockDim.x) {
    const int32_t step = step_of(e), previous = e > 0 ? step_of(e - 1) : -1;
    const bool real = step < end;
    if (real && (time[e] < 0 || step < previous || channel[e] < 0 || channel[e] >= c.n_inputs)) {
      atomicAdd(&w.bad[s], 1);
      continue;
    }
    mark(begin, previous, step, e);
    if (real && e == n_events - 1) mark(begin, step, end, n_events);
  }
}

// A block a sample.
template <class R>
__global__ void index_spikes(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int64_t s = blockIdx.x;
  const int32_t* step = c.spike_step + s * c.capacity;
  int32_t* begin = w.spike_begin + s * (c.n_steps + 1);
  const int32_t end = static_cast<int32_t>(c.n_steps), n = c.n_spikes[s];
  if (n == 0 && threadIdx.x == 0) mark(begin, -1, end, 0);
  for (int32_t k = threadIdx.x; k < n; k += blockDim.x) {
    mark(begin, k > 0 ? step[k - 1] : -1, step[k], k);
    if (k == n - 1) mark(begin, step[k], end, n);
  }
}

// The sources that send something in a step, with the synapse of each to the thread's neuron, fetched ahead of a walk
// in direction kWay. The first kEarly of a step are fetched early, the others when they are needed.
template <class R, int kWay, int kEarly>
struct Feed {
  struct Range {
    int32_t begin = 0, end = 0;
  };
  const int32_t *begin, *source;
  const Synapse<R>* column;  // the thread's in the table; null: not wanted
  int32_t n, n_steps;
  Range now, next, after;
  int32_t from[kEarly], next_from[kEarly], after_from[kEarly];
  Synapse<R> synapse[kEarly], next_synapse[kEarly];

  __device__ __forceinline__ Range range(int32_t t) const {
    Range r;
    if (begin && t >= 0 && t < n_steps) r.begin = begin[t], r.end = begin[t + 1];
    return r;
  }
  __device__ __forceinline__ void sources(const Range& r, int32_t* out) const {
    RANVIER_UNROLL
    for (int u = 0; u < kEarly; ++u) out[u] = r.begin + u < r.end ? source[r.begin + u] : 0;
  }
  __device__ __forceinline__ Synapse<R> of(int32_t j) const {
    return column ? column[int64_t(j) * n] : Synapse<R>{R(0), 0};
  }
  __device__ __forceinline__ void synapses(const Range& r, const int32_t* j, Synapse<R>* out) const {
    RANVIER_UNROLL
    for (int u = 0; u < kEarly; ++u) out[u] = r.begin + u < r.end ? of(j[u]) : Synapse<R>{R(0), 0};
  }

  __device__ __forceinline__ void start(const int32_t* begin_, const int32_t* source_, const Synapse<R>* column_,
                                        int32_t n_, int32_t n_steps_, int32_t t) {
    begin = begin_, source = source_, column = column_, n = n_, n_steps = n_steps_;
    now = range(t), next = range(t + kWay), after = range(t + 2 * kWay);
    sources(now, from), sources(next, next_from);
    synapses(now, from, synapse);
  }
  // Begins to fetch for the steps behind t.
  Range third;
  __device__ __forceinline__ void fetch(int32_t t) {
    synapses(next, next_from, next_synapse);
    sources(after, after_from);
    third = range(t + 3 * kWay);
  }
  __device__ __forceinline__ void turn() {
    now = next, next = after, after = third;
    RANVIER_UNROLL
    for (int u = 0; u < kEarly; ++u) {
      synapse[u] = next_synapse[u], from[u] = next_from[u], next_from[u] = after_from[u];
    }
  }
  // f(k, source, its synapse to the thread's first neuron) for each entry k of the step, in order.
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    RANVIER_UNROLL
    for (int u = 0; u < kEarly; ++u)
      if (now.begin + u < now.end) f(now.begin + u, from[u], synapse[u]);
    for (int32_t k = now.begin + kEarly; k < now.end; ++k) {
      const int32_t j = source[k];
      f(k, j, of(j));
    }
  }
};

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Synapse of source j to the thread's neuron q: the first was fetched, further ones were not.
template <class R>
__device__ __forceinline__ Synapse<R> synapse_of(const Synapse<R>* table, int64_t n, int32_t j, int32_t k, int q,
                                                 const Synapse<R>& first) {
  return q == 0 ? first : table[int64_t(j) * n + k];
}

template <class R, bool kAdex, int kOwn, bool kShared>
__global__ void __launch_bounds__(kThreads) walk(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int32_t n = static_cast<int32_t>(c.n), n_steps = static_cast<int32_t>(c.n_steps);
  const int threads = blockDim.x, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = threads / kWarp;
  const int32_t capacity = static_cast<int32_t>(c.capacity), slots = w.slots, stride = w.stride;
  uint32_t* const bits = reinterpret_cast<uint32_t*>(shared_memory());  // (2, kOwn warps)
  R* const ring = kShared ? reinterpret_cast<R*>(shared_memory() + (2 * kOwn * warps * sizeof(uint32_t) + 15) / 16 * 16)
                          : w.ring + blockIdx.x * int64_t(slots) * stride;
  int turn = 0;
  for (int64_t s = blockIdx.x; s < c.n_samples; s += gridDim.x) {
    const int64_t set = s / c.per_set;
    const Synapse<R>* const table = w.table + set * w.sources * c.n;
    const Synapse<R>* const recurrent = table + c.n_inputs * c.n;
    Cell<R> cell[kOwn];
    R v[kOwn], i[kOwn], z[kOwn], count[kOwn];
    int32_t first[kOwn];
    RANVIER_UNROLL
    for (int q = 0; q < kOwn; ++q) {
      const int32_t k = q * threads + threadIdx.x;
      if (k < n) {
        cell[q] = make_cell<kAdex>(c.neuron + set * kGridParameters * c.n, c.n, k, c.dt);
        for (int32_t slot = 0; slot < slots; ++slot) ring[int64_t(slot) * stride + k] = R(0);
      }
      v[q] = i[q] = count[q] = R(0), z[q] = k < n && kAdex ? cell[q].z0 : R(0), first[q] = -1;
    }
    const bool usable = w.bad[s] == 0;
    const int32_t k0 = threadIdx.x < n ? threadIdx.x : 0;
    Feed<R, 1, kOwn == 1 ? 4 : 1> events;
    events.start(usable ? w.event_begin + s * (c.n_steps + 1) : nullptr, c.channel + s * c.n_events, table + k0, n,
                 n_steps, 0);
    int32_t recorded = 0, lost = usable ? 0 : static_cast<int32_t>(c.n_events), slot = 0;
    for (int32_t t = 0; t < n_steps; ++t) {
      events.fetch(t);
      uint32_t* const now = bits + turn * kOwn * warps;
      bool fired[kOwn];
      RANVIER_UNROLL
      for (int q = 0; q < kOwn; ++q) {
        const int32_t k = q * threads + threadIdx.x;
        fired[q] = k < n && v[q] >= cell[q].v_th && !(c.single && first[q] >= 0);
        const uint32_t mask = __ballot_sync(kAll, fired[q]);
        if (lane == 0) now[q * warps + warp] = mask;
      }
      __syncthreads();
      // Adds the arrival of a synapse to the thread's own column.
      const auto arrive = [&](int32_t k, const Synapse<R>& x) {
        if (x.steps >= n_steps - t) return;
        int32_t to = slot + x.steps;
        if (to >= slots) to -= slots;
        R* const place = ring + int64_t(to) * stride + k;
        if (kShared)
          *place += x.w;
        else
          atomicAdd(place, x.w);
      };
      events.each([&](int32_t, int32_t j, const Synapse<R>& x) {
        RANVIER_UNROLL
        for (int q = 0; q < kOwn; ++q) {
          const int32_t k = q * threads + threadIdx.x;
          if (k < n) arrive(k, synapse_of(table, n, j, k, q, x));
        }
      });
      // Who fired, in the order of neurons; `place[q]` is that of the thread's own spike among all of the step.
      int32_t together = 0, place[kOwn];
      for (int word = 0; word < kOwn * warps; ++word) {
        uint32_t mask = now[word];
        RANVIER_UNROLL
        for (int q = 0; q < kOwn; ++q)
          if (word == q * warps + warp) place[q] = together + __popc(mask & ((1u << lane) - 1u));
        together += __popc(mask);
        if (!c.recurrent) continue;
        for (; mask; mask &= mask - 1) {
          const int32_t j = word * kWarp + __ffs(mask) - 1;
          RANVIER_UNROLL
          for (int q = 0; q < kOwn; ++q) {
            const int32_t k = q * threads + threadIdx.x;
            if (k < n) arrive(k, recurrent[int64_t(j) * n + k]);
          }
        }
      }
      RANVIER_UNROLL
      for (int q = 0; q < kOwn; ++q) {
        const int32_t k = q * threads + threadIdx.x;
        if (k >= n) continue;
        R* const here = ring + int64_t(slot) * stride + k;
        const R kick = kShared ? *here : __ldcg(here);
        *here = R(0);
        if (fired[q]) {
          count[q] += 1;
          if (first[q] < 0) first[q] = t;
          if (recorded + place[q] < capacity) {
            const int64_t at = s * c.capacity + recorded + place[q];
            c.spike_step[at] = t, c.spike_neuron[at] = k, c.spike_g[at] = R(0);
            if (c.keep) {
              R before, behind;
              slopes_of_spike<kAdex>(cell[q], v[q], i[q], z[q], kick, before, behind);
              c.spike_state[2 * at] = before, c.spike_state[2 * at + 1] = behind;
            }
          }
        }
        R v_next, i_next, z_next = R(0);
        advance<kAdex>(cell[q], v[q], i[q], z[q], kick, v_next, i_next, z_next);
        v[q] = fired[q] ? R(0) : v_next, i[q] = i_next;
        if (kAdex) z[q] = fired[q] ? z_next + cell[q].b : z_next;
        const int64_t out = (s * c.n_steps + t) * c.n + k;
        if (c.keep) c.v_step[out] = v[q];
        if (c.trace) c.v_trace[out] = v[q];
        if (c.parameters) c.i_step[out] = i[q];
        if (kAdex && c.parameters) c.z_step[out] = z[q];
      }
      const int32_t room = capacity - recorded;
      recorded += together < room ? together : room;
      lost += together < room ? 0 : together - room;
      if (++slot == slots) slot = 0;
      turn ^= 1;
      events.turn();
    }
    RANVIER_UNROLL
    for (int q = 0; q < kOwn; ++q) {
      const int64_t k = q * threads + threadIdx.x;
      if (k >= n) continue;
      c.count[s * c.n + k] = count[q], c.first_offset[s * c.n + k] = R(0);
      c.v[s * c.n + k] = v[q], c.first_step[s * c.n + k] = first[q];
    }
    if (threadIdx.x == 0) c.n_spikes[s] = recorded, c.overflow[s] = lost;
  }
}

template <class R, bool kAdex, int kOwn, bool kShared>
__global__ void __launch_bounds__(kThreads) walk_back(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int32_t n = static_cast<int32_t>(c.n), n_steps = static_cast<int32_t>(c.n_steps);
  const int threads = blockDim.x, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = threads / kWarp;
  const int32_t slots = w.slots, stride = w.stride;
  const int64_t set = blockIdx.x / w.parts, part = blockIdx.x % w.parts;
  const Synapse<R>* const table = w.table + set * w.sources * c.n;
  const Synapse<R>* const recurrent = table + c.n_inputs * c.n;
  Pair<R>* const sums = w.sums + blockIdx.x * int64_t(w.sources) * c.n;
  Pair<R>* const spike_sums = sums + c.n_inputs * c.n;
  const R weight = c.dt / c.unit;

  unsigned char* shared = shared_memory();
  R* const partial = reinterpret_cast<R*>(shared);  // (2, kTogether, warps)
  shared += (2 * kTogether * warps * sizeof(R) + 15) / 16 * 16;
  R* const voltages = reinterpret_cast<R*>(shared);  // (kRows, kOwn threads)
  shared += (kRows * kOwn * threads * sizeof(R) + 15) / 16 * 16;
  Pair<R>* const ring = kShared ? reinterpret_cast<Pair<R>*>(shared)
                                : reinterpret_cast<Pair<R>*>(w.ring) + blockIdx.x * int64_t(slots) * stride;
  int turn = 0;
  Cell<R> cell[kOwn];
  R gradient[kOwn][kGridParameters];
  RANVIER_UNROLL
  for (int q = 0; q < kOwn; ++q) {
    const int32_t k = q * threads + threadIdx.x;
    if (k < n) cell[q] = make_cell<kAdex>(c.neuron + set * kGridParameters * c.n, c.n, k, c.dt);
    RANVIER_UNROLL
    for (int p = 0; p < kGridParameters; ++p) gradient[q][p] = R(0);
  }
  const int64_t begin = set * c.per_set + part * c.per_set / w.parts;
  const int64_t end = set * c.per_set + (part + 1) * c.per_set / w.parts;
  for (int64_t s = begin; s < end; ++s) {
    R lv[kOwn], li[kOwn], lz[kOwn], ct_count[kOwn], ct_first[kOwn];
    int32_t first[kOwn];
    RANVIER_UNROLL
    for (int q = 0; q < kOwn; ++q) {
      const int32_t k = q * threads + threadIdx.x;
      const int64_t at = s * c.n + k;
      lv[q] = k < n ? c.ct_v[at] : R(0), li[q] = lz[q] = R(0);
      ct_count[q] = k < n ? c.ct_count[at] : R(0), ct_first[q] = k < n ? c.ct_first[at] : R(0);
      first[q] = k < n ? c.first_step[at] : -1;
    }
    // The voltage at the start of step t is that at the end of step t - 1, and 0 at first.
    const auto fetch_voltage = [&](int32_t t) {
      if (t > 0) {
        RANVIER_UNROLL
        for (int q = 0; q < kOwn; ++q) {
          const int32_t k = q * threads + threadIdx.x;
          if (k < n)
            __pipeline_memcpy_async(voltages + (t % kRows * kOwn + q) * threads + threadIdx.x,
                                    c.v_step + (s * c.n_steps + t - 1) * c.n + k, sizeof(R));
        }
      }
      __pipeline_commit();
    };
    for (int32_t back = 1; back < kRows; ++back) fetch_voltage(n_steps - back);
    const bool usable = w.bad[s] == 0;
    const int32_t k0 = threadIdx.x < n ? threadIdx.x : 0;
    Feed<R, -1, kOwn == 1 ? 4 : 1> events;
    events.start(usable ? w.event_begin + s * (c.n_steps + 1) : nullptr, c.channel + s * c.n_events, table + k0, n,
                 n_steps, n_steps - 1);
    Feed<R, -1, kOwn == 1 ? 2 : 1> spikes;
    spikes.start(w.spike_begin + s * (c.n_steps + 1), c.spike_neuron + s * c.capacity,
                 c.recurrent ? recurrent + k0 : nullptr, n, n_steps, n_steps - 1);
    int32_t slot = (n_steps - 1) % slots;
    for (int32_t t = n_steps - 1; t >= 0; --t) {
      fetch_voltage(t - kRows + 1);
      events.fetch(t), spikes.fetch(t);
      __pipeline_wait_prior(kRows - 1);
      // Which of the thread's neurons fire, and what was recorded of that: fetched before it is needed.
      bool hit[kOwn];
      R v[kOwn], g[kOwn], before[kOwn], behind[kOwn];
      RANVIER_UNROLL
      for (int q = 0; q < kOwn; ++q) hit[q] = false, g[q] = behind[q] = R(0), before[q] = R(1);
      spikes.each([&](int32_t r, int32_t j, const Synapse<R>&) {
        RANVIER_UNROLL
        for (int q = 0; q < kOwn; ++q) {
          if (j != q * threads + static_cast<int32_t>(threadIdx.x)) continue;
          const int64_t at = s * c.capacity + r;
          hit[q] = true, g[q] = c.ct_g[at] + (first[q] == t ? ct_first[q] : R(0));
          before[q] = c.spike_state[2 * at], behind[q] = c.spike_state[2 * at + 1];
        }
      });
      RANVIER_UNROLL
      for (int q = 0; q < kOwn; ++q) {
        const int32_t k = q * threads + threadIdx.x;
        v[q] = R(0);
        if (k >= n) continue;
        if (t > 0) v[q] = voltages[(t % kRows * kOwn + q) * threads + threadIdx.x];
        if (c.trace) lv[q] += c.ct_trace[(s * c.n_steps + t) * c.n + k];
        Pair<R> x;
        x.weight = li[q], x.time = slope_of_arrival(cell[q], li[q], lv[q], hit[q]);
        ring[int64_t(slot) * stride + k] = x;
      }
      // Adds the adjoints that a source's arrival at the thread's neurons meets to `row`; returns that of its time.
      const auto collect = [&](const Synapse<R>* rows, int32_t j, const Synapse<R>& x, Pair<R>* row) {
        R total = R(0);
        RANVIER_UNROLL
        for (int q = 0; q < kOwn; ++q) {
          const int32_t k = q * threads + threadIdx.x;
          if (k >= n) continue;
          const Synapse<R> own = synapse_of(rows, n, j, k, q, x);
          if (own.steps >= n_steps - t) continue;
          int32_t to = slot + own.steps;
          if (to >= slots) to -= slots;
          const Pair<R> met = ring[int64_t(to) * stride + k];
          add(row + int64_t(j) * n + k, met);
          total += own.w * met.time;
        }
        return total;
      };
      // What a spike's own arrivals meet: a sum over the block, formed by warps, added up by the thread of the neuron.
      int waiting[kOwn];  // where the warps' sums for the thread's spike lie
      RANVIER_UNROLL
      for (int q = 0; q < kOwn; ++q) waiting[q] = -1;
      if (c.recurrent)
        spikes.each([&](int32_t r, int32_t j, const Synapse<R>& x) {
          const int which = (r - spikes.now.begin) % kTogether;
          R* const here = partial + turn * kTogether * warps;
          const R total = warp_sum(collect(recurrent, j, x, spike_sums));
          if (lane == 0) here[which * warps + warp] = total;
          RANVIER_UNROLL
          for (int q = 0; q < kOwn; ++q)
            if (j == q * threads + static_cast<int32_t>(threadIdx.x)) waiting[q] = which;
          if (which != kTogether - 1 && r != spikes.now.end - 1) return;
          __syncthreads();
          RANVIER_UNROLL
          for (int q = 0; q < kOwn; ++q) {
            for (int k = 0; waiting[q] >= 0 && k < warps; ++k) g[q] += here[waiting[q] * warps + k];
            waiting[q] = -1;
          }
          turn ^= 1;
        });
      RANVIER_UNROLL
      for (int q = 0; q < kOwn; ++q) {
        const int32_t k = q * threads + threadIdx.x;
        if (k >= n) continue;
        const bool silent = c.single && first[q] >= 0 && first[q] < t;
        const R count = silent ? R(0) : ct_count[q] * surrogate(v[q], cell[q].v_th, weight);
        const R term = hit[q] ? spike_term<kAdex>(cell[q], lv[q], lz[q], g[q], before[q], behind[q]) : R(0);
        if (c.parameters) {
          const int64_t at = (s * c.n_steps + t - 1) * c.n + k;
          const R i = t > 0 ? c.i_step[at] : R(0), z = !kAdex ? R(0) : (t > 0 ? c.z_step[at] : cell[q].z0);
          add_parameters<kAdex>(cell[q], v[q], i, z, lv[q], li[q], lz[q], hit[q], term, count, gradient[q]);
        }
        if (hit[q])
          retreat_fired<kAdex>(cell[q], term, lv[q], li[q], lz[q]);
        else
          retreat<kAdex>(cell[q], v[q], lv[q], li[q], lz[q]);
        lv[q] += count;
      }
      events.each([&](int32_t e, int32_t j, const Synapse<R>& x) {
        const R total = collect(table, j, x, sums);
        if (!c.times) return;
        const R together = warp_sum(total);
        if (lane == 0) w.event_sums[(s * c.n_events + e) * warps + warp] = together;
      });
      if (--slot < 0) slot = slots - 1;
      events.turn(), spikes.turn();
    }
    RANVIER_UNROLL
    for (int q = 0; q < kOwn; ++q) gradient[q][kGridZ0] += kAdex ? lz[q] : R(0);
  }
  __pipeline_wait_prior(0);
  if (!c.parameters) return;
  RANVIER_UNROLL
  for (int q = 0; q < kOwn; ++q) {
    const int64_t k = q * threads + threadIdx.x;
    RANVIER_UNROLL
    for (int p = 0; p < kGridParameters; ++p)
      if (k < n) w.neuron_sums[(blockIdx.x * int64_t(kGridParameters) + p) * c.n + k] = gradient[q][p];
  }
}

// A thread a synapse.
template <class R>
__global__ void add_up(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = int64_t(w.sources) * c.n;
  if (k >= c.n_sets * row) return;
  const int64_t set = k / row, at = k % row, in = c.n_inputs * c.n;
  Pair<R> total{R(0), R(0)};
  for (int64_t part = 0; part < w.parts; ++part) {
    const Pair<R> x = w.sums[(set * w.parts + part) * row + at];
    total.weight += x.weight, total.time += x.time;
  }
  const bool input = at < in;
  const int64_t to = input ? set * in + at : set * (row - in) + at - in;
  (input ? c.dw_in : c.dw_rec)[to] = total.weight;
  (input ? c.dd_in : c.dd_rec)[to] = total.time * w.table[k].w;
}

// A thread a parameter of a neuron.
template <class R>
__global__ void add_up_neurons(Work<R> w) {
  const GridCall<R>& c = w.c;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = int64_t(kGridParameters) * c.n;
  if (k >= c.n_sets * row) return;
  R total = R(0);
  for (int64_t part = 0; part < w.parts; ++part) total += w.neuron_sums[(k / row * w.parts + part) * row + k % row];
  c.d_neuron[k] = total;
}

// A thread an event; those outside of the run have no derivative.
template <class R>
__global__ void add_up_events(Work<R> w, int warps) {
  const GridCall<R>& c = w.c;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= c.n_samples * c.n_events) return;
  const int64_t s = k / c.n_events, e = k % c.n_events;
  R total = R(0);
  if (w.bad[s] == 0 && e < w.event_begin[s * (c.n_steps + 1) + c.n_steps])
    for (int x = 0; x < warps; ++x) total += w.event_sums[k * warps + x];
  c.dt_event[k] = total;
}

// The launches of a call; the first error stays.
struct Launcher {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  void check(cudaError_t e) {
    if (error == cudaSuccess) error = e;
  }
  // kernel(arguments ...) with a thread for each of n things.
  template <class... A>
  void each(int64_t n, void (*kernel)(A...), A... arguments) {
    if (n > 0 && error == cudaSuccess) run(kernel, (n + 255) / 256, 256, 0, arguments...);
  }
  template <class... A>
  void run(void (*kernel)(A...), int64_t blocks, int threads, size_t shared, A... arguments) {
    if (blocks == 0 || error != cudaSuccess) return;
    if (shared > (48u << 10))
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
    check(cudaGetLastError());
  }
};

template <class R, bool kAdex>
void launch_walk(Launcher& l, const Work<R>& w, bool backward) {
  const Shape shape(w.c.n);
  const bool shared = ring_is_shared(w, backward);
  const size_t bytes = small_shared(w, backward) + (shared ? ring_bytes(w, backward) : 0);
  void (*kernel)(Work<R>);
  if (shape.own == 1)
    kernel = backward ? (shared ? walk_back<R, kAdex, 1, true> : walk_back<R, kAdex, 1, false>)
                      : (shared ? walk<R, kAdex, 1, true> : walk<R, kAdex, 1, false>);
  else if (shape.own == 4)
    kernel = backward ? walk_back<R, kAdex, 4, false> : walk<R, kAdex, 4, false>;
  else
    kernel = backward ? walk_back<R, kAdex, 16, false> : walk<R, kAdex, 16, false>;
  l.run(kernel, w.blocks, shape.threads, bytes, w);
}

// From the adjoints of the delays of a matrix to those of the positions `dx`.
template <class R>
void launch_positions(Launcher& l, const Delays<R>& d, int64_t sets, const R* dd, R* dx) {
  l.each(sets * d.sources * kWarp, positions::to_sources<R>, d, dd, sets, dx);
  l.run(positions::to_targets<R>, sets * positions::tiles(d.n), kWarp * positions::kWarps, 0, d, dd, dx);
}

template <class R>
void prepare(Launcher& l, const Work<R>& w) {
  const GridCall<R>& c = w.c;
  l.check(cudaMemsetAsync(w.bad, 0, c.n_samples * sizeof(int32_t), l.stream));
  l.each(c.n_sets * w.sources * c.n, build_table<R>, w);
  l.run(index_events<R>, c.n_samples, 256, 0, w);
}

}  // namespace

template <class R>
size_t grid_forward_scratch(const GridCall<R>& c) {
  Work<R> w{};
  return arrange(c, nullptr, false, w);
}
template <class R>
size_t grid_backward_scratch(const GridCall<R>& c) {
  Work<R> w{};
  return arrange(c, nullptr, true, w);
}

template <class R>
cudaError_t grid_forward(const GridCall<R>& c, void* scratch, cudaStream_t stream) {
  Work<R> w{};
  arrange(c, scratch, false, w);
  Launcher l{stream};
  prepare(l, w);
  if (c.adex)
    launch_walk<R, true>(l, w, false);
  else
    launch_walk<R, false>(l, w, false);
  return l.error;
}

template <class R>
cudaError_t grid_backward(const GridCall<R>& c, void* scratch, cudaStream_t stream) {
  Work<R> w{};
  arrange(c, scratch, true, w);
  Launcher l{stream};
  const int64_t row = int64_t(w.sources) * c.n;
  l.check(cudaMemsetAsync(w.sums, 0, w.blocks * row * sizeof(Pair<R>), stream));
  prepare(l, w);
  l.run(index_spikes<R>, c.n_samples, 256, 0, w);
  if (c.adex)
    launch_walk<R, true>(l, w, true);
  else
    launch_walk<R, false>(l, w, true);
  l.each(c.n_sets * row, add_up<R>, w);
  if (c.positions.dims) {
    launch_positions(l, delays_in(c), c.n_sets, static_cast<const R*>(w.c.dd_in), c.positions.d_in);
    if (c.recurrent) launch_positions(l, delays_rec(c), c.n_sets, static_cast<const R*>(w.c.dd_rec), c.positions.d_rec);
  }
  if (c.parameters) l.each(c.n_sets * kGridParameters * c.n, add_up_neurons<R>, w);
  if (c.times) l.each(c.n_samples * c.n_events, add_up_events<R>, w, Shape(c.n).warps());
  return l.error;
}

#define RANVIER_INSTANTIATE(R)                                                   \
  template size_t grid_forward_scratch<R>(const GridCall<R>&);                   \
  template size_t grid_backward_scratch<R>(const GridCall<R>&);                  \
  template cudaError_t grid_forward<R>(const GridCall<R>&, void*, cudaStream_t); \
  template cudaError_t grid_backward<R>(const GridCall<R>&, void*, cudaStream_t);
RANVIER_INSTANTIATE(float)
RANVIER_INSTANTIATE(double)
#undef RANVIER_INSTANTIATE

}  // namespace ranvier
