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
//            its `adjoint_steps`, which leave the adjoints of the buckets, then `gather` them: a
//            block takes 8 targets and its share of the samples, with adjoints and sums in shared memory
#include <algorithm>

#include "lif_adjoint_cuda.h"
#include "lif_cuda.h"
#include "lif_events_cuda.h"
#include "lif_gather_cuda.h"
#include "lif_scatter_cuda.h"
#include "lif_steps_cuda.h"
#include "lif_work_cuda.h"
#include "positions_cuda.h"

namespace ranvier {
namespace {

using namespace lif;
using positions::to_sources;
using positions::to_targets;

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
  if (bytes <= size_t(24) << 10) return cudaSuccess;  // what is static counts too
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class R>
void prepare(const Work<R>& w, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  const int64_t in = c.n_sets * c.n_inputs * c.n, rec = c.recurrent ? c.n_sets * c.n * c.n : 0;
  const Delays<R> d_in = delays_in(c), d_rec = delays_rec(c);
  if (in) pack_synapses<<<blocks(in, 256), 256, 0, stream>>>(c.w_in, d_in, in, c.dt, w.in), l.check();
  if (rec) pack_synapses<<<blocks(rec, 256), 256, 0, stream>>>(c.w_rec, d_rec, rec, c.dt, w.rec), l.check();
  l.check(cudaMemsetAsync(w.differ, 0, c.n_sets * sizeof(int32_t), stream));
  form_membranes<<<blocks(c.n_sets * c.n, 256), 256, 0, stream>>>(w), l.check();
  l.check(cudaMemsetAsync(w.bad, 0, c.n_samples * sizeof(int32_t), stream));
  l.check(cudaMemsetAsync(w.segment, 0, c.n_samples * (w.n_chunks + 1) * sizeof(int32_t), stream));
  const dim3 grid(static_cast<unsigned>(c.n_samples), blocks(c.n_events, 256));
  if (c.n_events) find_segments<<<grid, 256, 0, stream>>>(w), l.check();
  if (c.n_events) drop_unusable<<<blocks(c.n_samples, 256), 256, 0, stream>>>(w), l.check();
}

// Threads of a block of `n` neurons, `per` a thread.
unsigned threads_for(int64_t n, int per) { return blocks(blocks(n, per), kWarp) * kWarp; }

// Steps that a walk's ring takes in: all that a spike reaches, or what leaves room for two blocks an SM.
template <class R, class Bytes>
int32_t near_of(const Work<R>& w, unsigned threads, int32_t least, Bytes bytes) {
  const size_t aim = sizeof(R) == 4 && threads <= 256 ? kHalfShared : kShared;
  const int32_t most = w.slots - 1 > least ? w.slots - 1 : least;
  const size_t fixed = bytes(0), step = bytes(1) - fixed;
  const int64_t fits = fixed < aim ? static_cast<int64_t>((aim - fixed) / step) : 0;
  return static_cast<int32_t>(fits > most ? most : fits < least ? least : fits);
}

template <class R, int kPer, int kThreads>
void launch_steps(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const unsigned threads = threads_for(w.c.n, kPer);
  const auto bytes = [&](int32_t near) {
    return StepsMemory<R, kPer, kThreads>::bytes(static_cast<int32_t>(w.c.n), static_cast<int32_t>(threads), near);
  };
  const int32_t near = near_of(w, threads, kAheadOf<kPer, kThreads>, bytes);
  l.check(allow_shared(steps<R, kPer, kThreads>, bytes(near)));
  steps<R, kPer, kThreads><<<static_cast<unsigned>(w.c.n_samples), threads + kWarp, bytes(near), stream>>>(w, k, near);
  l.check();
}

template <class R, int kPer, int kThreads, bool kParameters>
void launch_adjoint(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const unsigned threads = threads_for(w.c.n, kPer);
  const auto bytes = [&](int32_t near) {
    return AdjointMemory<R, kPer>::bytes(static_cast<int32_t>(w.c.n), static_cast<int32_t>(threads), near);
  };
  const int32_t near = near_of(w, threads, 1, bytes);
  l.check(allow_shared(adjoint_steps<R, kPer, kThreads, kParameters>, bytes(near)));
  adjoint_steps<R, kPer, kThreads, kParameters>
      <<<static_cast<unsigned>(w.c.n_samples), threads, bytes(near), stream>>>(w, k, near);
  l.check();
}

// Steps in a ring of kLanes columns, where `together` blocks are to have room on a processor: that of an H100 has 228
// KiB, of which a block takes 1 beside its own.
template <class R, int kLanes>
int32_t rows_of(const Work<R>& w, size_t together) {
  constexpr size_t kBeside = sizeof(Stage<R>) * kScatterWarps + 2048;
  const size_t bytes = std::min({kShared, most_shared() - kBeside, (size_t(228) << 10) / together - kBeside});
  return static_cast<int32_t>(std::min(bytes / (3 * kLanes * sizeof(R)), size_t(w.slots) + kRoom));
}

template <class R, int kLanes>
void launch_near(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  size_t together = kScatterBlocks<R>;
  while (together > 1 && rows_of<R, kLanes>(w, together) < w.slots + kRoom / 2) --together;
  const int32_t rows = rows_of<R, kLanes>(w, together);
  const size_t bytes = size_t(rows) * 3 * kLanes * sizeof(R);
  l.check(allow_shared(scatter<R, kLanes>, bytes));
  const dim3 grid(static_cast<unsigned>(w.c.n_samples), blocks(w.c.n, kLanes));
  scatter<R, kLanes><<<grid, kScatterWarps * kWarp, bytes, stream>>>(w, k, rows), l.check();
}

template <class R>
void launch_scatter(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  const unsigned samples = static_cast<unsigned>(c.n_samples), sets = static_cast<unsigned>(c.n_sets);
  // synapses are numbered by 32 bits
  if (rows_of<R, 8>(w, 1) >= w.slots && c.n_inputs * c.n <= int64_t(UINT32_MAX)) {
    if (k == 0 && c.n_inputs) fold<<<dim3(sets, 64), 256, 0, stream>>>(w), l.check();
    // the widest ring of which a processor has room for two, else a narrow one alone
    if (rows_of<R, 32>(w, 2) >= w.slots + kRoom / 2) return launch_near<R, 32>(w, k, stream, l);
    if (rows_of<R, 16>(w, 2) >= w.slots + kRoom / 2) return launch_near<R, 16>(w, k, stream, l);
    return launch_near<R, 8>(w, k, stream, l);
  }
  const int32_t t0 = k * w.chunk, last = static_cast<int32_t>(c.n_steps);
  const int32_t t1 = t0 + w.chunk + w.slots < last ? t0 + w.chunk + w.slots : last, from = k ? t0 + w.slots : 0;
  if (from < t1) clear<<<dim3(samples, 64), 256, 0, stream>>>(w, from, t1), l.check();
  scatter_far<<<dim3(samples, blocks(c.n, kStage)), kStage, 0, stream>>>(w, k), l.check();
}

template <class R>
void launch_steps_of(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  if (c.n <= 128)
    launch_steps<R, 1, 128>(w, k, stream, l);
  else if (c.n <= 256)
    launch_steps<R, 1, 256>(w, k, stream, l);
  else if (c.n <= 512)
    launch_steps<R, 1, 512>(w, k, stream, l);
  else if (c.n <= 1024)
    launch_steps<R, 2, 512>(w, k, stream, l);
  else
    launch_steps<R, 4, 512>(w, k, stream, l);
}

template <class R>
void launch_sort(const Work<R>& w, cudaStream_t stream, Launches& l) {
  const Plan& p = w.plan;
  if (p.sources == 0) return;
  const int warps = sort_bytes(p.sources, kSortWarps) <= kSortShared ? kSortWarps : 1;
  const bool in_shared = sorts_in_shared(p.sources);
  const size_t bytes = in_shared ? sort_bytes(p.sources, warps) : 0;
  l.check(allow_shared(sort_events<R>, bytes));
  const dim3 grid(static_cast<unsigned>(w.n_chunks * p.windows), static_cast<unsigned>(w.c.n_samples));
  sort_events<R><<<grid, warps * kWarp, bytes, stream>>>(w, in_shared), l.check();
  const int64_t delays = w.c.n_sets * p.tiles * int64_t(p.sources + kOwners) * kTile;
  tile_delays<R><<<blocks(delays, 256), 256, 0, stream>>>(w), l.check();
}

template <class R, bool kParameters>
void launch_adjoint_of(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Call<R>& c = w.c;
  if (c.n <= 128)
    launch_adjoint<R, 1, 128, kParameters>(w, k, stream, l);
  else if (c.n <= 256)
    launch_adjoint<R, 1, 256, kParameters>(w, k, stream, l);
  else if (c.n <= 512)
    launch_adjoint<R, 1, 512, kParameters>(w, k, stream, l);
  else if (c.n <= 1024)
    launch_adjoint<R, 2, 512, kParameters>(w, k, stream, l);
  else
    launch_adjoint<R, 4, 512, kParameters>(w, k, stream, l);
}

template <class R, bool kParameters, bool kFar>
void launch_gather_from(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  const Plan& p = w.plan;
  l.check(allow_shared(gather<R, kParameters, kFar>, p.bytes));
  const dim3 grid(static_cast<unsigned>(p.tiles * p.workers), static_cast<unsigned>(p.groups),
                  static_cast<unsigned>(w.c.n_sets));
  gather<R, kParameters, kFar><<<grid, p.owners * kTile, p.bytes, stream>>>(w, k), l.check();
}

template <class R, bool kParameters>
void launch_gather(const Work<R>& w, int32_t k, cudaStream_t stream, Launches& l) {
  if (w.plan.sources == 0) return;
  if (w.plan.rows)
    launch_gather_from<R, kParameters, false>(w, k, stream, l);
  else
    launch_gather_from<R, kParameters, true>(w, k, stream, l);
  const int64_t synapses = w.c.n_sets * w.plan.sources * w.c.n;
  if (k == 0) sum_workers<R, kParameters><<<blocks(synapses, 128), 128, 0, stream>>>(w), l.check();
}

// From the adjoints of the delays of a matrix to those of the positions `dx`.
template <class R>
void launch_positions(const Delays<R>& d, int64_t sets, const R* dd, R* dx, cudaStream_t stream, Launches& l) {
  const unsigned tiles = static_cast<unsigned>(sets * positions::tiles(d.n));
  if (d.sources) to_sources<<<blocks(sets * d.sources, 8), 256, 0, stream>>>(d, dd, sets, dx), l.check();
  to_targets<<<tiles, kWarp * positions::kWarps, 0, stream>>>(d, dd, dx), l.check();
}

// Both passes, kernel after kernel; `watch` is told the name of what has just been launched (benchmarks/lif_cuda.cu).
template <class R, class Watch>
cudaError_t run_forward(const Call<R>& c, void* scratch, cudaStream_t stream, Watch watch) {
  Launches l;
  if (c.n_samples == 0 || c.n == 0) return cudaSuccess;
  Work<R> w{};
  arrange(c, scratch, false, w);
  prepare(w, stream, l), watch("prepare");
  for (int32_t k = 0; k < w.n_chunks; ++k) {
    launch_scatter(w, k, stream, l), watch("scatter");
    launch_steps_of(w, k, stream, l), watch("steps");
  }
  return l.error;
}

template <class R, bool kParameters, class Watch>
cudaError_t run_backward(const Call<R>& c, void* scratch, cudaStream_t stream, Watch watch) {
  Launches l;
  if (c.n_samples == 0 || c.n == 0) return cudaSuccess;
  Work<R> w{};
  arrange(c, scratch, true, w);
  prepare(w, stream, l);
  const unsigned samples = static_cast<unsigned>(c.n_samples);
  find_spike_segments<<<samples, 32, 0, stream>>>(w), l.check(), watch("prepare");
  launch_sort(w, stream, l), watch("sort");
  if (c.times) l.check(cudaMemsetAsync(c.dt_event, 0, c.n_samples * c.n_events * sizeof(R), stream));
  const dim3 grid(blocks(c.capacity, 64), samples);
  if (c.capacity) jacobian<R, kParameters ? 8 : 5><<<grid, 64, 0, stream>>>(w), l.check();
  watch("jacobian");
  for (int32_t k = w.n_chunks - 1; k >= 0; --k) {
    launch_adjoint_of<R, kParameters>(w, k, stream, l), watch("adjoint steps");
    launch_gather<R, kParameters>(w, k, stream, l);
    if (c.times && c.n_events) event_times<<<dim3(samples, blocks(c.n_events, 64)), 256, 0, stream>>>(w, k), l.check();
    watch("gather");
  }
  if (c.positions.dims) {
    launch_positions(delays_in(c), c.n_sets, w.c.dd_in, c.positions.d_in, stream, l);
    if (c.recurrent) launch_positions(delays_rec(c), c.n_sets, w.c.dd_rec, c.positions.d_rec, stream, l);
    watch("positions");
  }
  if (kParameters)
    sum_parameters<<<blocks(c.n_sets * c.n, 4), 4 * kWarp, 0, stream>>>(w), l.check(), watch("parameters");
  return l.error;
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
  return run_forward(c, scratch, stream, [](const char*) {});
}

template <class R>
cudaError_t lif_backward(const Call<R>& c, void* scratch, cudaStream_t stream) {
  const auto unwatched = [](const char*) {};
  return c.parameters ? run_backward<R, true>(c, scratch, stream, unwatched)
                      : run_backward<R, false>(c, scratch, stream, unwatched);
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
