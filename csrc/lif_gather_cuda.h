// Backward: from the adjoints of the buckets to the derivatives of synapses, event times and neurons.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kGather = 4;                // events whose adjoints are fetched together
constexpr int32_t kNowhere = 0x20000000;  // a row behind every window, even twice

// Delays as `gather` reads them: a tile's sources in a row; too long ones point behind every window.
template <class R>
__global__ void tile_delays(Work<R> w) {
  const int64_t at = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, n = w.c.n, inputs = w.c.n_inputs;
  const int64_t rows = w.plan.sources + kOwners;
  if (at >= w.c.n_sets * w.plan.tiles * rows * kTile) return;
  const int64_t source = at / kTile % rows, tile = at / kTile / rows % w.plan.tiles,
                set = at / kTile / rows / w.plan.tiles;
  const int64_t target = tile * kTile + at % kTile;
  Event<R> x{R(0), 0};
  if (source < w.plan.sources && target < n) {
    const Synapse<R> own = load(source < inputs ? w.in + (set * inputs + source) * n + target
                                                : w.rec + (set * n + source - inputs) * n + target);
    x = {own.offset, own.step > w.plan.reach ? kNowhere : own.step};
  }
  w.delays[at] = x;
}

// What a synapse's derivatives are made of (Eq. 30): with f and y of an arrival, P = la + y (lb + y lc) and
// Q = lb + 2 y lc, the sums of f P, of f Q dq/dh, and, for the parameters, of h f P and of f Q dq/dc.
template <class R, int kSums>
struct alignas(kSums * sizeof(R)) Sums {
  R x[kSums];
};

// The units of a worker that have events, one after another; the same for all threads of a block, each warp for itself.
// Runs of windows are dealt in turn, those of the first steps first.
template <class R>
struct Units {
  const Work<R>& w;
  const int32_t* borders;  // of the first sample of the set, this chunk and this group of sources
  int32_t worker, total, base;
  int32_t sample, window;  // the unit of this lane; sample of the set
  unsigned left;           // lanes whose units are still to come
  __device__ __forceinline__ Units(const Work<R>& w, const int32_t* borders, int32_t worker)
      : w(w), borders(borders), worker(worker), base(0) {
    const int32_t runs = w.plan.runs * static_cast<int32_t>(w.c.per_set);
    total = worker < runs ? ((runs - worker - 1) / w.plan.workers + 1) * w.plan.run : 0;
    look();
  }
  __device__ __forceinline__ const int32_t* borders_of(int32_t s, int32_t at) const {
    const Plan& p = w.plan;
    return borders + (int64_t(s) * w.n_chunks * p.windows + at) * (p.groups * (p.owners + 1));
  }
  __device__ __forceinline__ void look() {
    const Plan& p = w.plan;
    const int32_t at = base + static_cast<int32_t>(threadIdx.x) % kWarp, per_set = static_cast<int32_t>(w.c.per_set);
    const int32_t run = worker + at / p.run * p.workers;
    sample = run % per_set, window = run / per_set * p.run + at % p.run;
    bool some = at < total && window < p.windows;
    if (some) {
      const int32_t* own = borders_of(sample, window);
      some = own[0] < own[p.owners];
    }
    left = __ballot_sync(kAll, some);
  }
  // Whether there is another one.
  __device__ __forceinline__ bool next(int32_t& s, int32_t& at) {
    while (left == 0) {
      base += kWarp;
      if (base >= total) return false;
      look();
    }
    const int lane = __ffs(left) - 1;
    left &= left - 1;
    s = __shfl_sync(kAll, sample, lane), at = __shfl_sync(kAll, window, lane);
    return true;
  }
};

// What a thread of `gather` knows of its block's work.
template <class R, int kSums>
struct Gather {
  const Work<R>& w;
  Membrane<R> m;
  R rate2;                  // log2(e) / tau_syn
  const char* delays;       // Event<R> (sources, kTile) of this target
  char* sums;               // Sums (sources, kTile) of this target, shared
  Sent<R>* stage;           // (kTile,) events of this owner, shared
  const char* rows;         // Four<R> (rows, kTile) of this target, shared
  const Four<R>* adjoints;  // (circle, N) of this target
  const Event<R>* sorted;   // of the set
  const int32_t* source_of;
  int64_t row, next_row;                 // events of the sample; of that of the unit after this one
  int32_t from, to, next_from, next_to;  // events of this owner; of it in the unit after this one
  Event<R> event;  // that this lane prepares next for its owner, and its source; -1: none, it touches nothing
  int32_t source;
  int32_t t0, count, head, ring;  // first step of the window; its steps; its place in the ring; rows of the ring
  int32_t slot, end;              // far: its place in the circle, first row behind its adjoints
  int32_t first_source, sources;

  __device__ __forceinline__ void fetch(int64_t row, int32_t e, int32_t to) {
    event = {R(0), kNowhere}, source = -1;
    if (e < to) event = sorted[row + e], source = source_of[row + e];
  }
  template <bool kFar, bool kNear>
  __device__ __forceinline__ void take(int32_t lane, int32_t owner) {
    const R dt = w.c.dt;
    const int32_t inputs = static_cast<int32_t>(w.c.n_inputs), circle = w.circle, n = static_cast<int32_t>(w.c.n);
    int32_t longest = to - from;
    for (int o = kTile; o < kWarp; o *= 2) longest = max(longest, __shfl_xor_sync(kAll, longest, o));
    if (longest <= 0) fetch(next_row, next_from + lane, next_to);
    for (int32_t done = 0; done < longest; done += kTile) {
      const int32_t place = (source < 0 ? sources + owner : source - first_source) * int32_t(kTile * sizeof(Event<R>));
      const int32_t at = event.step - t0;
      __syncwarp();
      stage[lane] =
          Sent<R>{event.offset, static_cast<uint32_t>(at) < static_cast<uint32_t>(count) ? at + head : kNowhere, place,
                  source >= inputs};
      __syncwarp();
      const bool last = done + kTile >= longest;  // then those of the unit after this one
      fetch(last ? next_row : row, (last ? next_from : from + done + kTile) + lane, last ? next_to : to);
      const int32_t staged = min(kTile, longest - done);
      for (int32_t e = 0; e < staged; e += kGather) {
        uint32_t places[kGather];
        R h[kGather];
        Four<R> l[kGather];
        Event<R> delay[kGather];
        Sent<R> sent[kGather];
        RANVIER_UNROLL
        for (int u = 0; u < kGather; ++u) {
          sent[u] = stage[e + u];
          places[u] = sent[u].place;
          delay[u] = *reinterpret_cast<const Event<R>*>(delays + places[u]);
        }
        RANVIER_UNROLL
        for (int u = 0; u < kGather; ++u) {
          int32_t ahead;
          land(sent[u].offset, delay[u].step, delay[u].offset, dt, sent[u].least, ahead, h[u]);
          uint32_t row = static_cast<uint32_t>(sent[u].row + ahead);
          if constexpr (kFar) {
            row = min(row, static_cast<uint32_t>(end));
            int32_t at = slot + static_cast<int32_t>(row);
            if (at >= circle) at -= circle;
            l[u] = Four<R>{0, 0, 0, 0};
            if (row < static_cast<uint32_t>(end)) l[u] = adjoints[int64_t(at) * n];
          } else {
            row = min(min(row, row - static_cast<uint32_t>(ring)), static_cast<uint32_t>(ring));  // zeros lie there
            l[u] = *reinterpret_cast<const Four<R>*>(rows + row * uint32_t(kTile * sizeof(Four<R>)));
          }
        }
        RANVIER_UNROLL
        for (int u = 0; u < kGather; ++u) {
          const R f = exp2_(-h[u] * rate2), y = q_of<kNear>(h[u], m.c);
          const R b = l[u].b + y * l[u].c, by_weight = f * (l[u].a + y * b), by_reach = f * (b + y * l[u].c);
          Sums<R, kSums>& sum = *reinterpret_cast<Sums<R, kSums>*>(
              sums + places[u] * uint32_t(sizeof(Sums<R, kSums>) / sizeof(Event<R>)));
          Sums<R, kSums> total = sum;
          total.x[0] += by_weight;
          total.x[1] += by_reach * (1 + m.c * y);
          if constexpr (kSums == 4) {
            total.x[2] += h[u] * by_weight;
            total.x[3] += by_reach * q_slope_c<false>(h[u], m.c);
          }
          sum = total;
        }
      }
    }
  }
};

// The sums of synapses over the events of chunk `k`: one block a (8 targets, worker), group of sources and set. The
// events of a unit by source are cut into pieces of nearly the same length, but no source is cut: a sum has one owner.
template <class R, bool kParameters, bool kFar>
__global__ void __launch_bounds__(sizeof(R) == 4 && !(kParameters && kFar) ? kOwners * kTile : kOwners * kTile / 2, 1)
    gather(Work<R> w, int32_t k) {
  extern __shared__ char shared[];
  constexpr int kSums = kParameters ? 4 : 2;
  using Sum = Sums<R, kSums>;
  const Call<R>& c = w.c;
  const Plan& p = w.plan;
  const int32_t tid = threadIdx.x, lane = tid % kTile, owner = tid / kTile, n = static_cast<int32_t>(c.n);
  const int32_t tile = blockIdx.x % p.tiles, worker = blockIdx.x / p.tiles, target = tile * kTile + lane;
  const int64_t set = blockIdx.z, clamped = min(target, n - 1), per_set = c.per_set;
  const int32_t g0 = blockIdx.y * p.group, g1 = min(g0 + p.group, p.sources), owners = p.owners;
  const int32_t first = k * w.chunk, behind = first + w.chunk, circle = w.circle, base = first % circle;
  const int32_t last = min(static_cast<int32_t>(c.n_steps), first + circle);  // no adjoints from there on
  const bool newest = k == w.n_chunks - 1;
  const int32_t table = p.groups * (owners + 1);
  Units<R> units(
      w, w.borders + (set * per_set * w.n_chunks + k) * p.windows * table + int64_t(blockIdx.y) * (owners + 1), worker);
  int32_t s, window;
  bool some = units.next(s, window);
  if (!some && !newest) return;  // silence adds nothing

  Four<R>* rows = reinterpret_cast<Four<R>*>(shared);
  Sum* sums = reinterpret_cast<Sum*>(rows + (kFar ? 0 : (p.rows + 1) * kTile));
  Sent<R>* stage = reinterpret_cast<Sent<R>*>(sums + (p.group + owners) * kTile);
  Gather<R, kSums> g{w, membrane(c, set * n + clamped)};
  g.rate2 = g.m.rate_syn * R(1.4426950408889634);
  g.delays =
      reinterpret_cast<const char*>(w.delays + ((set * p.tiles + tile) * (p.sources + kOwners) + g0) * kTile + lane);
  g.sums = reinterpret_cast<char*>(sums + lane), g.rows = reinterpret_cast<const char*>(rows + lane);
  g.stage = stage + owner * (kTile + 1);  // one more: owners read other banks
  g.first_source = g0, g.sources = g1 - g0, g.ring = p.rows;
  g.sorted = w.sorted, g.source_of = w.source_of;
  const bool near = near_for_all(g.m, c.dt, 2);
  for (int32_t q = tid; q < (p.group + owners) * kTile; q += owners * kTile) sums[q] = Sum{};
  if constexpr (!kFar)
    if (tid < kTile) rows[p.rows * kTile + tid] = Four<R>{0, 0, 0, 0};

  const int64_t events = c.n_events + (c.recurrent ? c.capacity : 0);
  // Asks for the adjoints of steps [t, end) of sample `s`, from place `at` of the ring on, which may be one turn ahead.
  const auto bring = [&](int32_t s, int32_t t, int32_t end, int32_t at) {
    if (target >= n) return;
    const Four<R>* buckets = w.buckets + (set * per_set + s) * circle * n + target;
    at += owner;
    for (t += owner; t < end; t += owners, at += owners) {
      if (at >= p.rows) at -= p.rows;
      Four<R>* to = rows + at * kTile + lane;
      const int32_t slot = base + t - first;
      if (t < last)
        copy(to, buckets + int64_t(slot >= circle ? slot - circle : slot) * n);
      else
        *to = Four<R>{0, 0, 0, 0};
    }
  };
  const auto borders = [&](bool some, int32_t s, int32_t window) {
    g.next_from = g.next_to = 0, g.next_row = (set * per_set + s) * events;
    if (some) {
      const int32_t* own = units.borders_of(s, window) + owner;
      g.next_from = own[0], g.next_to = own[1];
    }
  };

  int32_t t0 = first + window * p.window, brought = t0;  // adjoints of this window are there, or asked for, before that
  g.head = 0;
  borders(some, s, window);
  g.fetch(g.next_row, g.next_from + lane, g.next_to);
  while (some) {
    const int32_t t1 = min(t0 + p.window, behind), end = t1 + p.reach + kSlack;
    g.t0 = t0, g.count = t1 - t0, g.from = g.next_from, g.to = g.next_to, g.row = g.next_row;
    const int32_t s_before = s;
    const int32_t window_before = window;
    some = units.next(s, window);
    borders(some, s, window);
    const int32_t next_t0 = first + window * p.window;
    int32_t next_head = 0, next_brought = next_t0;
    if constexpr (kFar) {
      __syncthreads();  // all are done with the unit before
      g.slot = base + t0 - first, g.end = min(end, last) - t0;
      g.adjoints = w.buckets + (set * per_set + s_before) * circle * n + clamped;
    } else {
      arrived<0>();
      __syncthreads();  // all are done with the unit before, and what they brought is there
      if (brought < end) {
        const int32_t at = g.head + brought - t0;
        bring(s_before, brought, end, at >= p.rows ? at - p.rows : at), close_group();
        arrived<0>();
        __syncthreads();
      }
      if (some) {
        // in the same run, rows that this unit has are kept, else the next one's lie behind them
        const bool joined = s == s_before && window > window_before && next_t0 < end;
        const int32_t skipped = joined ? next_t0 - t0 : end - t0, next_t1 = min(next_t0 + p.window, behind);
        if (joined) next_brought = end;
        next_head = g.head + skipped;
        if (next_head >= p.rows) next_head -= p.rows;
        const int32_t start = next_brought;
        int32_t at = next_head + start - next_t0;
        if (at >= p.rows) at -= p.rows;
        next_brought = max(start, min(next_t1 + p.reach + kSlack, next_t0 + p.rows - skipped));
        bring(s, start, next_brought, at), close_group();
      }
    }
    if (near)
      g.template take<kFar, true>(lane, owner);
    else
      g.template take<kFar, false>(lane, owner);
    t0 = next_t0, brought = next_brought, g.head = next_head;
  }
  __syncthreads();
  if (target >= n) return;
  Sum* out = reinterpret_cast<Sum*>(w.sums) + ((worker * c.n_sets + set) * p.sources + g0) * n + target;
  for (int32_t source = owner; source < g1 - g0; source += owners) {
    Sum total = sums[source * kTile + lane];
    if (!newest) {
      const Sum before = out[int64_t(source) * n];
      RANVIER_UNROLL
      for (int q = 0; q < kSums; ++q) total.x[q] += before.x[q];
    }
    out[int64_t(source) * n] = total;
  }
}

// The workers' sums to the derivatives of the synapses; a thread a synapse.
template <class R, bool kParameters>
__global__ void sum_workers(Work<R> w) {
  constexpr int kSums = kParameters ? 4 : 2;
  const Call<R>& c = w.c;
  const int64_t n = c.n, sources = w.plan.sources, all = c.n_sets * sources * n;
  const int64_t at = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (at >= all) return;
  const Sums<R, kSums>* sums = reinterpret_cast<const Sums<R, kSums>*>(w.sums) + at;
  Sums<R, kSums> total{};
  for (int32_t q = 0; q < w.plan.workers; ++q)
    for (int x = 0; x < kSums; ++x) total.x[x] += sums[q * all].x[x];
  const int64_t j = at % n, source = at / n % sources, set = at / n / sources;
  const bool input = source < c.n_inputs;
  const int64_t synapse = input ? (set * c.n_inputs + source) * n + j : (set * n + source - c.n_inputs) * n + j;
  const R weight = (input ? w.in : w.rec)[synapse].weight;
  const Membrane<R> m = membrane(c, set * n + j);
  (input ? c.dw_in : c.dw_rec)[synapse] = total.x[0];
  (input ? c.dd_in : c.dd_rec)[synapse] = weight * (m.rate_syn * total.x[0] - total.x[1]);
  if constexpr (kParameters) {
    w.tau[at] = weight * total.x[3] * m.rate_mem * m.rate_mem;
    w.tau[all + at] = weight * (total.x[2] - total.x[3]) * m.rate_syn * m.rate_syn;
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

// Sums the shares of samples and synapses: a warp a neuron.
template <class R>
__global__ void sum_parameters(Work<R> w) {
  const Call<R>& c = w.c;
  const int64_t n = c.n, sources = w.plan.sources, at = blockIdx.x * int64_t(blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (at >= c.n_sets * n) return;
  const int64_t set = at / n, j = at % n;
  const int32_t lane = threadIdx.x % kWarp;
  R tau_mem = 0, tau_syn = 0, v_th = 0;
  for (int64_t s = set * c.per_set + lane; s < (set + 1) * c.per_set; s += kWarp) {
    const Share<R> share = w.shares[s * n + j];
    tau_mem += share.tau_mem, tau_syn += share.tau_syn, v_th += share.v_th;
  }
  for (int64_t i = lane; i < sources; i += kWarp) {
    const int64_t synapse = (set * sources + i) * n + j;
    tau_mem += w.tau[synapse], tau_syn += w.tau[c.n_sets * sources * n + synapse];
  }
  tau_mem = warp_sum(tau_mem), tau_syn = warp_sum(tau_syn), v_th = warp_sum(v_th);
  if (lane == 0) c.d_tau_mem[at] = tau_mem, c.d_tau_syn[at] = tau_syn, c.d_v_th[at] = v_th;
}

}  // namespace lif
}  // namespace ranvier
