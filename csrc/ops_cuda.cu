// GPU launchers of ranvier.ops: how many blocks of which kernel. The kernels, and what each is about, are in
// ops_sums_cuda.h, ops_invert_cuda.h, ops_dots_cuda.h and ops_spikes_cuda.h.
//
// No sum depends on which thread comes first: the same call gives the same bits.
#include <algorithm>

#include "ops_cuda.h"
#include "ops_dots_cuda.h"
#include "ops_invert_cuda.h"
#include "ops_spikes_cuda.h"
#include "ops_sums_cuda.h"
#include "scratch_cuda.h"

namespace ranvier {
namespace {

using namespace ops;

constexpr int64_t kMostY = 65535;            // blocks along the second and third axis of a grid
constexpr int64_t kManyWarps = 4224;         // 32 for each of the 132 multiprocessors of an H100: enough to be busy
constexpr int64_t kL1 = int64_t(192) << 10;  // bytes of rows that a multiprocessor's L1 holds

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; }

// How lists are dealt out to the threads of sum_lists.
struct Deal {
  int lanes;
  int32_t each, block, alone;
};

// `per`: numbers in 16 bytes of a row. `many`: a group may have many lists, one after another.
Deal deal(int64_t sets, int64_t lists, int64_t named, int64_t c, int per, int threads, bool many) {
  Deal d{};
  // A multiprocessor keeps the rows of its tile in L1 where they are few enough: then as wide a tile as fits. Where
  // none fits, a wide one for long stretches of memory.
  d.lanes = c <= 16 * per || (named * 512 > kL1 && named * 128 <= kL1) ? 8 : 32;
  const int64_t tiles = ceiling(c, d.lanes * per), groups = threads / d.lanes;
  const int64_t warps = sets * lists * tiles * d.lanes / kWarp;
  d.each = many ? static_cast<int32_t>(std::clamp<int64_t>(warps / kManyWarps, 1, 32)) : 1;
  d.block = static_cast<int32_t>(groups * d.each), d.alone = 512;
  // Where there are too few lists to keep all threads busy, a block has few of them, and shares all but the shortest.
  const int64_t few = sets * lists * tiles / (2 * 132);
  if (few <= groups / 4) d.block = static_cast<int32_t>(std::max<int64_t>(few, 1)), d.alone = 16;
  return d;
}

template <class Lists, class A, class M, bool kWhole, int kLanes, int kAhead, int kThreads>
cudaError_t launch_sums(const Lists& lists, Sums<A, M> z, const Deal& d, cudaStream_t stream) {
  z.each = d.each, z.block = d.block, z.alone = d.alone;
  const int64_t tiles = ceiling(z.c, Piece<M, kWhole, kLanes>::kTile);
  if (tiles > kMostY || z.lists >= int64_t(1) << 31 || z.named >= int64_t(1) << 31)
    return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(ceiling(z.lists, d.block)), static_cast<unsigned>(tiles),
                  static_cast<unsigned>(std::min(z.sets, kMostY)));
  sum_lists<Lists, A, M, kWhole, kLanes, kAhead, kThreads><<<grid, kThreads, 0, stream>>>(lists, z);
  return cudaGetLastError();
}

template <class Lists, class A, class M>
cudaError_t sums(const Lists& lists, const Sums<A, M>& z, bool many, cudaStream_t stream) {
  constexpr int kPer = 16 / sizeof(M), kThreads = 256, kAhead = 8;
  const Deal d = deal(z.sets, z.lists, z.named, z.c, kPer, kThreads, many);
  if (z.c % kPer == 0 && aligned(z.x) && aligned(z.out))
    return d.lanes == 8 ? launch_sums<Lists, A, M, true, 8, kAhead, kThreads>(lists, z, d, stream)
                        : launch_sums<Lists, A, M, true, 32, kAhead, kThreads>(lists, z, d, stream);
  return d.lanes == 8 ? launch_sums<Lists, A, M, false, 8, 4, kThreads>(lists, z, d, stream)
                      : launch_sums<Lists, A, M, false, 32, 4, kThreads>(lists, z, d, stream);
}

// The scratch of `scatter`.
template <class A>
size_t arrange(const ScatterCall<A>& call, void* scratch, Inverted<A>& w) {
  const OpsSizes& z = call.size;
  w = {};
  w.values = call.values, w.ids = call.ids, w.count = call.count;
  w.sets = z.p, w.lists = z.p == 1 ? z.q * z.r : z.r, w.slots = z.s, w.n = z.n;
  // two more launches take longer than looking through few lists for every window
  w.chunk = static_cast<int32_t>(
      w.lists <= kOneChunk ? kOneChunk : std::clamp<int64_t>(ceiling(w.lists, kChunks), kLeastChunk, kMostChunk));
  w.chunks = static_cast<int32_t>(ceiling(w.lists, w.chunk));
  const int64_t window = w.n * w.chunks * w.sets / 128;  // for as many blocks
  w.window = kLeastWindow;
  while (w.window < window && w.window < kMostWindow) w.window *= 2;
  Layout layout{static_cast<char*>(scratch)};
  layout.take(w.entries, w.sets * w.lists * w.slots);
  layout.take(w.ranges, w.sets * w.n);
  if (w.chunks > 1) layout.take(w.before, w.sets * w.chunks * w.n), layout.take(w.taken, w.sets);
  return layout.used;
}

template <class A>
cudaError_t launch_invert(const Inverted<A>& w, cudaStream_t stream) {
  if (w.chunks > kMostY) return cudaErrorInvalidConfiguration;
  const unsigned sets = static_cast<unsigned>(std::min(w.sets, kMostY));
  const dim3 grid(static_cast<unsigned>(ceiling(w.n, w.window)), static_cast<unsigned>(w.chunks), sets);
  constexpr int kThreads = kInvertWarps * kWarp;
  if (w.chunks == 1) {
    invert<A, Pass::all><<<grid, kThreads, 0, stream>>>(w);
    return cudaGetLastError();
  }
  invert<A, Pass::count><<<grid, kThreads, 0, stream>>>(w);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const dim3 add_grid(static_cast<unsigned>(ceiling(w.n, kAddThreads)), sets);
  add_chunks<<<add_grid, kAddThreads, 0, stream>>>(w.before, w.taken, w.ranges, w.sets, w.n, w.chunks);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  invert<A, Pass::place><<<grid, kThreads, 0, stream>>>(w);
  return cudaGetLastError();
}

template <class A>
Sums<A, A> sums_of(const ScatterCall<A>& call) {
  const OpsSizes& z = call.size;
  const int64_t lists = z.p == 1 ? z.q * z.r : z.r;
  return {call.g, call.out, z.p, lists, z.n, static_cast<int32_t>(z.c), 0, 0, 0};
}

template <class A, class M>
Sums<A, M> sums_of(const GatherCall<A, M>& call) {
  const OpsSizes& z = call.size;
  return {call.matrix, call.out, z.p, z.n, z.p == 1 ? z.q * z.r : z.r, static_cast<int32_t>(z.c), 0, 0, 0};
}

template <class A, class M>
SpikeLists<A> lists_of(const GatherCall<A, M>& call) {
  const OpsSizes& z = call.size;
  return {call.values, call.ids, call.count, z.p == 1 ? z.q * z.r : z.r, z.s, static_cast<uint32_t>(z.n)};
}

template <class A, class M, bool kWhole, int kLanes>
cudaError_t launch_dots(const DotsCall<A, M>& call, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const int64_t parts = ceiling(z.s, kDotsThreads / kLanes * kEntries);
  const dim3 grid(static_cast<unsigned>(z.q * z.r), static_cast<unsigned>(std::min(parts, kMostY)));
  dots<A, M, kWhole, kLanes><<<grid, kDotsThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace

template <class A>
size_t ops_scatter_scratch(const ScatterCall<A>& call) {
  Inverted<A> w;
  return arrange(call, nullptr, w);
}

template <class A, class M>
cudaError_t ops_gather(const GatherCall<A, M>& call, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  if (z.q * z.r * z.c == 0) return cudaSuccess;
  // One list a group: lists that are summed at the same time go through the matrix together.
  return sums(lists_of(call), sums_of(call), false, stream);
}

template <class A>
cudaError_t ops_scatter(const ScatterCall<A>& call, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const size_t bytes = sizeof(A) * z.p * z.n * z.c;
  if (bytes == 0) return cudaSuccess;
  if (z.q * z.r * z.s == 0) return cudaMemsetAsync(call.out, 0, bytes, stream);
  Inverted<A> w;
  arrange(call, scratch, w);
  if (const cudaError_t error = launch_invert(w, stream); error != cudaSuccess) return error;
  return sums(w, sums_of(call), true, stream);
}

template <class A, class M>
cudaError_t ops_dots(const DotsCall<A, M>& call, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  constexpr int kPer = 16 / sizeof(M);
  if (z.q * z.r * z.s == 0) return cudaSuccess;
  const bool narrow = z.c <= 16 * kPer;
  if (z.c % kPer == 0 && aligned(call.matrix) && aligned(call.g))
    return narrow ? launch_dots<A, M, true, 8>(call, stream) : launch_dots<A, M, true, 32>(call, stream);
  return narrow ? launch_dots<A, M, false, 8>(call, stream) : launch_dots<A, M, false, 32>(call, stream);
}

template <class A>
cudaError_t ops_spikes(const SpikesCall<A>& call, cudaStream_t stream) {
  if (call.r == 0) return cudaSuccess;
  // a warp for 128 neurons, as long as there are that many warps
  const int64_t warps = std::clamp<int64_t>(ceiling(call.n, 4 * kWarp), 1, kSpikeWarps);
  spikes<<<static_cast<unsigned>(call.r), static_cast<unsigned>(warps * kWarp), 0, stream>>>(call);
  return cudaGetLastError();
}

#define RANVIER_OPS_MATRIX(A, M)                                          \
  template cudaError_t ops_gather(const GatherCall<A, M>&, cudaStream_t); \
  template cudaError_t ops_dots(const DotsCall<A, M>&, cudaStream_t);
RANVIER_OPS_MATRIX(float, float)
RANVIER_OPS_MATRIX(double, double)
RANVIER_OPS_MATRIX(float, Bf16)
RANVIER_OPS_MATRIX(float, F16)
#undef RANVIER_OPS_MATRIX
template size_t ops_scatter_scratch(const ScatterCall<float>&);
template size_t ops_scatter_scratch(const ScatterCall<double>&);
template cudaError_t ops_scatter(const ScatterCall<float>&, void*, cudaStream_t);
template cudaError_t ops_scatter(const ScatterCall<double>&, void*, cudaStream_t);
template cudaError_t ops_spikes(const SpikesCall<float>&, cudaStream_t);
template cudaError_t ops_spikes(const SpikesCall<double>&, cudaStream_t);

}  // namespace ranvier
