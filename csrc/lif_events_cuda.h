// Before a walk: synapses packed, events cut into chunks, and, for backward, sorted by source.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

template <class R>
__global__ void pack_synapses(const R* weight, Delays<R> delays, int64_t size, R dt, Synapse<R>* out) {
  const int64_t k = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, row = k / delays.n;
  if (k >= size) return;
  Synapse<R> x;
  x.weight = weight[k];
  split_time(delays.of(row / delays.sources, row % delays.sources, k % delays.n), dt, x.step, x.offset);
  out[k] = x;
}

template <class R>
__global__ void form_membranes(Work<R> w) {
  const int64_t at = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (at >= w.c.n_sets * w.c.n) return;
  const Membrane<R> m = membrane(w.c, at), one = membrane(w.c, at / w.c.n * w.c.n);
  w.membranes[at] = m;
  if (m.tau_mem != one.tau_mem || m.tau_syn != one.tau_syn || m.v_th != one.v_th) w.differ[at / w.c.n] = 1;
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
  const bool late = e > 0 && !(time[e - 1] <= time[e]);
  if (here < w.n_chunks && (late || time[e] < 0 || channel < 0 || channel >= w.c.n_inputs)) atomicAdd(&w.bad[s], 1);
}

// Events were perhaps never checked (Events.from_times does it): one that is out of order, before 0 or of a channel
// that does not exist would become an address, so it makes the whole sample's events unusable: no chunk has any.
template <class R>
__global__ void drop_unusable(Work<R> w) {
  const int64_t s = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (s >= w.c.n_samples || w.bad[s] == 0) return;
  for (int32_t k = 0; k <= w.n_chunks; ++k) w.segment[s * (w.n_chunks + 1) + k] = 0;
}

// The first of [low, high) whose step is not before `t`; steps do not fall.
template <class Step>
__device__ __forceinline__ int32_t first_from(int32_t low, int32_t high, int64_t t, Step step) {
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (step(middle) < t)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The same for the spike records.
template <class R>
__global__ void find_spike_segments(Work<R> w) {
  const int64_t s = blockIdx.x;
  const int32_t* step = w.c.spike_step + s * w.c.capacity;
  for (int32_t k = threadIdx.x; k <= w.n_chunks; k += blockDim.x)
    w.spike_segment[s * (w.n_chunks + 1) + k] =
        first_from(0, w.c.n_spikes[s], int64_t(k) * w.chunk, [&](int32_t e) { return int64_t(step[e]); });
}

// The input events and spikes of a window by source, in each source by time: a stable counting sort, one block a
// (window, sample). Each warp counts a part of the events for itself; its places of a source lie behind those of the
// warps before it.
template <class R>
__global__ void __launch_bounds__(kWarp* kSortWarps) sort_events(Work<R> w, bool in_shared) {
  extern __shared__ char shared[];
  __shared__ int32_t limits[4], totals[kSortWarps];
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.y, cell = blockIdx.x;
  const int32_t tid = threadIdx.x, lane = tid % kWarp, warp = tid / kWarp, threads = blockDim.x,
                warps = threads / kWarp;
  const int32_t sources = w.plan.sources, inputs = static_cast<int32_t>(c.n_inputs);
  const Plan& p = w.plan;
  int32_t* borders = w.borders + (s * gridDim.x + cell) * p.groups * (p.owners + 1);
  // (warps, sources)
  int32_t* cursors =
      in_shared ? reinterpret_cast<int32_t*>(shared) : w.cursors + (s * gridDim.x + cell) * int64_t(sources);
  const R* time = c.time + s * c.n_events;
  const int32_t* channel = c.channel + s * c.n_events;
  const int32_t* spike_step = c.spike_step + s * c.capacity;
  const int32_t* spike_neuron = c.spike_neuron + s * c.capacity;

  // where the window begins and ends among the chunk's input events and spikes
  if (tid < 4) {
    const int32_t k = static_cast<int32_t>(cell / w.plan.windows), window = static_cast<int32_t>(cell % w.plan.windows);
    const int32_t* segment = (tid < 2 ? w.segment : w.spike_segment) + s * (w.n_chunks + 1) + k;
    const int32_t border = window + tid % 2;
    const int64_t t = int64_t(k) * w.chunk + int64_t(border) * w.plan.window;
    int32_t at = 0;
    if (tid >= 2 && !c.recurrent)
      at = 0;
    else if (border == 0)
      at = segment[0];
    else if (border == w.plan.windows)
      at = segment[1];
    else if (tid < 2)
      at = first_from(segment[0], segment[1], t, [&](int32_t e) {
        Event<R> x;
        split_time(time[e], c.dt, x.step, x.offset);
        return int64_t(x.step);
      });
    else
      at = first_from(segment[0], segment[1], t, [&](int32_t e) { return int64_t(spike_step[e]); });
    limits[tid] = at;
  }
  for (int32_t j = tid; j < warps * sources; j += threads) cursors[j] = 0;
  __syncthreads();
  const int32_t ours = limits[1] - limits[0], count = ours + limits[3] - limits[2], begin = limits[0] + limits[2];
  // source of event `e` of the window; -1: it cannot be used
  auto source = [&](int32_t e) {
    if (e >= count) return -1;
    if (e >= ours) return inputs + spike_neuron[limits[2] + e - ours];
    const int32_t x = channel[limits[0] + e];
    return x >= 0 && x < inputs && time[limits[0] + e] >= 0 ? x : -1;
  };
  const int32_t part = (count + threads - 1) / threads * kWarp, first = warp * part, last = min(first + part, count);
  for (int32_t e = first + lane; e < last; e += kWarp) {
    const int32_t x = source(e);
    if (x >= 0) atomicAdd(&cursors[warp * sources + x], 1);
  }
  __syncthreads();

  int32_t before = begin;
  for (int32_t j = 0; j < sources; j += threads) {
    const int32_t mine = j + tid;
    int32_t total = 0;
    if (mine < sources)
      for (int32_t q = 0; q < warps; ++q) total += cursors[q * sources + mine];
    int32_t upto = total;
    for (int o = 1; o < kWarp; o *= 2) {
      const int32_t left = __shfl_up_sync(kAll, upto, o);
      if (lane >= o) upto += left;
    }
    if (lane == kWarp - 1) totals[warp] = upto;
    __syncthreads();
    int32_t at = before + upto - total;
    for (int32_t q = 0; q < warps; ++q) {
      if (q < warp) at += totals[q];
      before += totals[q];
    }
    if (mine < sources) {
      for (int32_t q = 0; q < warps; ++q) {
        const int32_t here = cursors[q * sources + mine];
        cursors[q * sources + mine] = at;
        at += here;
      }
    }
    __syncthreads();
  }

  // The events of a group of sources in pieces of nearly the same length, one an owner; no source is cut. What warp 0
  // has not yet placed anything by are the places where the sources begin.
  const auto start_of = [&](int32_t x) { return x < sources ? cursors[x] : before; };
  for (int32_t j = tid; j < p.groups * (p.owners + 1); j += threads) {
    const int32_t group = j / (p.owners + 1), q = j % (p.owners + 1);
    const int32_t g0 = min(group * p.group, sources), g1 = min(g0 + p.group, sources), start = start_of(g0);
    const int32_t aim = start + static_cast<int32_t>(int64_t(start_of(g1) - start) * q / p.owners);
    borders[j] = start_of(first_from(g0, g1, aim, [&](int32_t x) { return int64_t(start_of(x)); }));
  }
  __syncthreads();

  const int64_t row = s * (c.n_events + (c.recurrent ? c.capacity : 0));
  for (int32_t a = first; a < last; a += kWarp) {
    const int32_t e = a + lane, x = e < last ? source(e) : -1;
    const unsigned active = __ballot_sync(kAll, x >= 0);
    if (x >= 0) {
      const unsigned peers = __match_any_sync(active, x);
      const int leader = __ffs(peers) - 1;
      int32_t place = 0;
      if (lane == leader) place = atomicAdd(&cursors[warp * sources + x], __popc(peers));
      place = __shfl_sync(peers, place, leader) + __popc(peers & ((1u << lane) - 1));
      Event<R> event;
      if (e < ours)
        split_time(time[limits[0] + e], c.dt, event.step, event.offset);
      else
        event = {c.spike_g[s * c.capacity + limits[2] + e - ours], spike_step[limits[2] + e - ours]};
      w.sorted[row + place] = event;
      w.source_of[row + place] = x;
    }
    __syncwarp();
  }
}

}  // namespace lif
}  // namespace ranvier
