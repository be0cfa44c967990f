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

}  // namespace lif
}  // namespace ranvier
