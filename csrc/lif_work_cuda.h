// What the LIF kernels on the GPU share: a call with its scratch, synapses as they read them, loads and additions.
#pragma once
#include "arrival.h"
#include "copy_cuda.h"
#include "lif_call.h"
#include "lif_plan_cuda.h"
#include "lif_step.h"
#include "scratch_cuda.h"
#include "warp_cuda.h"

namespace ranvier {
namespace lif {

constexpr size_t kHalfShared = size_t(104) << 10;  // that two blocks of an SM may have each
constexpr size_t kShared = size_t(200) << 10;      // bytes of shared memory that a block may have
constexpr size_t kBuckets = size_t(160) << 20;     // bytes aimed at for the circle of buckets

// A choice made when a kernel is compiled.
struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};

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
  Synapse<R>*in, *rec;     // (P, M, N), (P, N, N)
  Membrane<R>* membranes;  // (P, N)
  int32_t* differ;         // (P,) whether they are not all the same
  Four<R>* buckets;        // (S, circle, N)
  R* current;              // (S, N) i between chunks; backward: adjoint of i
  R* lam;                  // (S, N) adjoint of v between chunks
  int32_t* bad;            // (S,) events that cannot be used
  int32_t* segment;        // (S, n_chunks + 1) first event of each chunk
  // backward
  Plan plan;               // of gather; below, sources are the inputs, then the neurons
  int32_t* spike_segment;  // (S, n_chunks + 1) first record of each chunk
  int32_t* borders;        // (S, n_chunks, windows, groups, owners + 1) events of a window: first of each owner
  int32_t* cursors;        // (S, n_chunks, windows, sources), where shared memory is too small: place to write next
  Event<R>* sorted;        // (S, E + C) input events and spikes of a window by source
  int32_t* source_of;      // (S, E + C) their sources
  Event<R>* delays;        // (P, tiles, sources + kOwners, kTile) zero where there is no synapse
  R* sums;                 // (workers, P, sources, N, 2 or 4) of each worker
  R* slopes;               // (S, C, K) Jacobian of each spike
  R* tau;                  // (2, P, sources, N) derivatives for tau_mem, tau_syn a synapse
  Share<R>* shares;        // (S, N)
};

// Bytes of shared memory that a block may have here.
inline size_t most_shared() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return size_t(48) << 10;
  return static_cast<size_t>(most);
}

template <class R>
size_t arrange(const Call<R>& c, void* scratch, bool backward, Work<R>& w) {
  w.c = c;
  const int64_t slots = c.n_slots < c.n_steps ? c.n_slots : c.n_steps;
  const int64_t row = c.n_samples * c.n * int64_t(sizeof(Four<R>));
  // half of what the voltages take, where that is more
  const int64_t voltages = c.n_samples * c.n * c.n_steps * int64_t(sizeof(R)) / 2;
  const int64_t bytes = voltages > int64_t(kBuckets) ? voltages : int64_t(kBuckets);
  int64_t chunk = bytes / (row > 0 ? row : 1) - slots;
  // each chunk reads again what the one before it left behind its end
  const int64_t least = 3 * slots > 64 ? 3 * slots : 64;
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
  layout.take(w.in, in), layout.take(w.rec, rec), layout.take(w.membranes, p * n), layout.take(w.differ, p);
  layout.take(w.buckets, s * w.circle * n);
  layout.take(w.current, s * n);
  layout.take(w.bad, s);
  layout.take(w.segment, s * (chunks + 1));
  if (backward) {
    if (c.positions.dims) layout.take(w.c.dd_in, in), layout.take(w.c.dd_rec, rec);
    layout.take(w.lam, s * n);
    layout.take(w.spike_segment, s * (chunks + 1));
    w.plan = plan_gather(c, w.chunk, w.slots, most_shared());
    const size_t sources = w.plan.sources, events = s * (c.n_events + (c.recurrent ? c.capacity : 0));
    const size_t cells = s * chunks * w.plan.windows;
    layout.take(w.borders, cells * w.plan.groups * (w.plan.owners + 1));
    if (!sorts_in_shared(sources)) layout.take(w.cursors, cells * sources);
    layout.take(w.sorted, events), layout.take(w.source_of, events);
    layout.take(w.delays, p * w.plan.tiles * (sources + kOwners) * kTile);
    layout.take(w.sums, w.plan.workers * (in + rec) * (c.parameters ? 4 : 2));
    layout.take(w.slopes, s * c.capacity * (c.parameters ? 8 : 5));
    if (c.parameters) layout.take(w.tau, 2 * (in + rec)), layout.take(w.shares, s * n);
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
// The same for what is asked for early. A load of four numbers takes four registers, and the first other use of the one
// that nobody reads would wait for the load.
__device__ __forceinline__ Synapse<float> load_early(const Synapse<float>* place) {
  const float2 x = __ldg(reinterpret_cast<const float2*>(place));
  return {x.x, x.y, __ldg(&place->step)};
}
__device__ __forceinline__ Synapse<double> load_early(const Synapse<double>* place) { return load(place); }
__device__ __forceinline__ Four<float> load_early(const Four<float>* place) {
  const float2 x = *reinterpret_cast<const float2*>(place);
  return {x.x, x.y, place->c, 0};
}
__device__ __forceinline__ Four<double> load_early(const Four<double>* place) {
  const double2 x = *reinterpret_cast<const double2*>(place);
  return {x.x, x.y, place->c, 0};
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

// Barriers of a block whose warps meet in different places of the code: __syncthreads is for one place, and a compiler
// may ask it twice for a result that it could have kept. `threads` is all of the block.
__device__ __forceinline__ void meet(int32_t threads) { asm volatile("bar.sync 0, %0;" ::"r"(threads) : "memory"); }
// Whether any thread says so.
__device__ __forceinline__ bool meet_or(int32_t threads, int32_t some) {
  int32_t any;
  asm volatile("{ .reg .pred p, q; setp.ne.s32 p, %1, 0; bar.red.or.pred q, 0, %2, p; selp.s32 %0, 1, 0, q; }"
               : "=r"(any)
               : "r"(some), "r"(threads)
               : "memory");
  return any;
}

// A number that stays in its register. What a kernel was called with is otherwise fetched anew at every use, which
// takes longer than most of what is done with it; no compiler sees through this shuffle. All threads of a warp call it.
__device__ __forceinline__ int32_t held(int32_t x) {
  asm volatile("shfl.sync.idx.b32 %0, %0, 0, 31, -1;" : "+r"(x));
  return x;
}

// The bits that are set in `count` words of shared memory, one after another, the same for all threads of a warp.
struct Bits {
  const uint32_t* words;
  int32_t count, base;
  uint32_t mine, any, bits;  // a word a lane; words that have bits left; bits left of the one that is being read
  int32_t word;
  __device__ __forceinline__ Bits(const uint32_t* words, int32_t count)
      : words(words), count(count), base(0), bits(0), word(0) {
    fetch();
  }
  __device__ __forceinline__ void fetch() {
    const int32_t at = base + static_cast<int32_t>(threadIdx.x) % kWarp;
    mine = at < count ? words[at] : 0;
    any = __ballot_sync(kAll, mine != 0);
  }
  // The place of the next one; -1: none is left.
  __device__ __forceinline__ int32_t next() {
    while (bits == 0) {
      if (any == 0) {
        base += kWarp;
        if (base >= count) return -1;
        fetch();
        continue;
      }
      word = __ffs(any) - 1;
      any &= any - 1;
      bits = __shfl_sync(kAll, mine, word);
    }
    const int32_t bit = __ffs(bits) - 1;
    bits &= bits - 1;
    return (base + word) * kWarp + bit;
  }
};

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
// Whether polynomials without a split of the argument give both for all neurons of the warp and arrivals at most
// `steps` before the end of their step: nearly always. Inputs have one step, spikes two (Eq. 15).
template <class R>
__device__ __forceinline__ bool near_for_all(const Membrane<R>& m, R dt, int steps) {
  const R most = R(1.01) * R(steps) * dt;
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

}  // namespace lif
}  // namespace ranvier
