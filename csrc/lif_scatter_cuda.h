// Forward: input events into the buckets.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kBatch = 8;    // events whose synapses are fetched together
constexpr int kStage = 128;  // events staged in shared memory at a time

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
  const bool near = near_for_all(m, c.dt, 1);
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

}  // namespace lif
}  // namespace ranvier
