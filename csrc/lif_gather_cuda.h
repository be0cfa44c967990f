// Backward: from the adjoints of the buckets to the derivatives of synapses, event times and neurons.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kGatherWarps = 8;  // warps of a block that share the samples of a source
constexpr int kGather = 4;       // events whose adjoints are fetched together

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
  const bool near = near_for_all(membrane(w.c, blockIdx.z * w.c.n + (j < w.c.n ? j : 0)), w.c.dt, x < neurons ? 2 : 1);
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

}  // namespace lif
}  // namespace ranvier
