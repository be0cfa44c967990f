// GPU launchers of ranvier.ops: how many blocks of which kernel. The kernels, and what each is about, are in
// ops_sums_cuda.h, ops_rows_cuda.h, ops_invert_cuda.h, ops_marks_cuda.h, ops_dots_cuda.h,
// ops_columns_cuda.h and ops_spikes_cuda.h.
//
// No sum depends on which thread comes first: the same call gives the same bits.
#include <algorithm>
#include <type_traits>

#include "ops_columns_cuda.h"
#include "ops_cuda.h"
#include "ops_dots_cuda.h"
#include "ops_invert_cuda.h"
#include "ops_marks_cuda.h"
#include "ops_rows_cuda.h"
#include "ops_spikes_cuda.h"
#include "ops_sums_cuda.h"
#include "scratch_cuda.h"

namespace ranvier {
namespace {

using namespace ops;

constexpr int64_t kMostY = 65535;            // blocks along the second and third axis of a grid
constexpr int64_t kManyWarps = 4096;         // about 32 for each multiprocessor of an H100: enough to be busy
constexpr int kMostEach = 16;                // lists a group of add_rows
constexpr int64_t kL1 = int64_t(192) << 10;  // bytes of rows that a multiprocessor's L1 holds

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; }

// How lists are dealt out to the threads of sum_lists and add_rows.
struct Deal {
  int lanes;
  int32_t each, block, alone;
};

// A block gets `each` lists for every group of `lanes` threads.
Deal deal(int64_t sets, int64_t lists, int64_t tiles, int threads, int lanes, int32_t each) {
  const int64_t groups = threads / lanes;
  Deal d{lanes, each, static_cast<int32_t>(groups * each), 512};
  // Where there are too few lists to keep all threads busy, a block has few of them, and shares all but the shortest.
  const int64_t few = sets * lists * tiles / (2 * 132);
  if (few <= groups / 4) d.each = 1, d.block = static_cast<int32_t>(std::max<int64_t>(few, 1)), d.alone = 16;
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
cudaError_t sums(const Lists& lists, const Sums<A, M>& z, cudaStream_t stream) {
  constexpr int kPer = 16 / sizeof(M), kThreads = 256, kAhead = 8;
  // One list a group: lists that are summed at the same time go through the matrix together.
  // A multiprocessor keeps the rows of its tile in L1 where they are few enough: then as wide a tile as fits. Where
  // none fits, a wide one for long stretches of memory.
  const int lanes = z.c <= 16 * kPer || (z.named * 512 > kL1 && z.named * 128 <= kL1) ? 8 : 32;
  const Deal d = deal(z.sets, z.lists, ceiling(z.c, lanes * kPer), kThreads, lanes, 1);
  if (z.c % kPer == 0 && aligned(z.x) && aligned(z.out))
    return d.lanes == 8 ? launch_sums<Lists, A, M, true, 8, kAhead, kThreads>(lists, z, d, stream)
                        : launch_sums<Lists, A, M, true, 32, kAhead, kThreads>(lists, z, d, stream);
  return d.lanes == 8 ? launch_sums<Lists, A, M, false, 8, 4, kThreads>(lists, z, d, stream)
                      : launch_sums<Lists, A, M, false, 32, 4, kThreads>(lists, z, d, stream);
}

template <class A, bool kWhole, int kLanes, int kAhead, int kThreads, bool kTurned>
cudaError_t launch_rows(const Inverted<A>& lists, Sums<A, A> z, const Deal& d, cudaStream_t stream) {
  z.each = d.each, z.block = d.block, z.alone = d.alone;
  const int64_t tiles = ceiling(z.c, Piece<A, kWhole, kLanes>::kTile);
  if (tiles > kMostY || z.lists >= int64_t(1) << 31 || z.named >= int64_t(1) << 31)
    return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(ceiling(z.lists, z.block)), static_cast<unsigned>(tiles),
                  static_cast<unsigned>(std::min(z.sets, kMostY)));
  add_rows<A, kWhole, kLanes, kAhead, kThreads, kTurned><<<grid, kThreads, 0, stream>>>(lists, z);
  return cudaGetLastError();
}

template <class A, int kThreads, bool kTurned>
cudaError_t rows_of(const Inverted<A>& lists, const Sums<A, A>& z, cudaStream_t stream) {
  constexpr int kPer = 16 / sizeof(A);
  const int lanes = z.c <= 16 * kPer ? 8 : 32;
  const int64_t tiles = ceiling(z.c, lanes * kPer), warps = z.sets * z.lists * tiles * lanes / kWarp;
  // as many lists a group as leave enough warps, a power of two
  int32_t each = 1;
  const int32_t most = kTurned ? kTurnedRows / (kThreads / lanes) : std::min(lanes, kMostEach);
  while (each < most && (kTurned || warps >= 2 * each * kManyWarps)) each *= 2;
  const Deal d = deal(z.sets, z.lists, tiles, kThreads, lanes, each);
  if (z.c % kPer == 0 && aligned(z.x) && aligned(z.out))
    return d.lanes == 8 ? launch_rows<A, true, 8, 8, kThreads, kTurned>(lists, z, d, stream)
                        : launch_rows<A, true, 32, 8, kThreads, kTurned>(lists, z, d, stream);
  return d.lanes == 8 ? launch_rows<A, false, 8, 4, kThreads, kTurned>(lists, z, d, stream)
                      : launch_rows<A, false, 32, 4, kThreads, kTurned>(lists, z, d, stream);
}

// The scratch of `scatter`.
template <class A>
size_t arrange(const ScatterCall<A>& call, void* scratch, Inverted<A>& w) {
  const OpsSizes& z = call.size;
  w = {};
  w.values = call.values, w.ids = call.ids, w.count = call.count;
  w.sets = z.p, w.lists = z.p == 1 ? z.q * z.r : z.r, w.slots = z.s, w.n = z.n;
  Layout layout{static_cast<char*>(scratch)};
  layout.take(w.entries, w.sets * w.lists * w.slots);
  layout.take(w.ranges, w.sets * w.n);
  layout.take(w.taken, w.sets);
  if (w.lists <= kMostWords * kWord && w.slots <= kMostMarkedSlots && w.sets * w.n * w.lists <= kMostMarked) {
    w.chunk = kWord, w.chunks = static_cast<int32_t>(ceiling(w.lists, kWord));
    layout.take(w.words, w.sets * w.chunks * w.n);
    layout.take(w.marked, w.sets * w.n * w.lists);
    return layout.used;
  }
  w.chunk = static_cast<int32_t>(std::clamp<int64_t>(ceiling(w.lists, kChunks), kLeastChunk, kMostChunk));
  w.chunks = static_cast<int32_t>(ceiling(w.lists, w.chunk));
  const int64_t window = w.n * w.chunks * w.sets / 128;  // for as many blocks
  w.window = kLeastWindow;
  while (w.window < window && w.window < kMostWindow) w.window *= 2;
  layout.take(w.before, w.sets * w.chunks * w.n);
  return layout.used;
}

template <class A>
cudaError_t launch_marks(const Inverted<A>& w, cudaStream_t stream) {
  const unsigned sets = static_cast<unsigned>(std::min(w.sets, kMostY));
  const dim3 grid(static_cast<unsigned>(w.chunks), static_cast<unsigned>(ceiling(w.n, kMarkedRows)), sets);
  mark_lists<A><<<grid, kWord * kWarp, 0, stream>>>(w);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_collect(const Inverted<A>& w, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceiling(w.n, kWarp)), static_cast<unsigned>(std::min(w.sets, kMostY)));
  collect_marks<A><<<grid, std::min(w.chunks, kWarp) * kWarp, 0, stream>>>(w);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_invert(const Inverted<A>& w, cudaStream_t stream) {
  if (w.words) {
    if (const cudaError_t error = launch_marks(w, stream); error != cudaSuccess) return error;
    return launch_collect(w, stream);
  }
  if (w.chunks > kMostY) return cudaErrorInvalidConfiguration;
  const unsigned sets = static_cast<unsigned>(std::min(w.sets, kMostY));
  const dim3 grid(static_cast<unsigned>(ceiling(w.n, w.window)), static_cast<unsigned>(w.chunks), sets);
  constexpr int kThreads = kInvertWarps * kWarp;
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

// The scratch of gather (`values`) and dots (none) with a matrix (C, N).
template <class A>
size_t arrange(const OpsSizes& z, const A* values, const int32_t* ids, const int32_t* count, void* scratch, Tiled<A>& w,
               A*& parts) {
  w = {};
  w.values = values, w.ids = ids, w.count = count;
  w.sets = z.p, w.lists = z.p == 1 ? z.q * z.r : z.r, w.slots = z.s, w.n = z.n;
  w.tiles = static_cast<int32_t>(std::min<int64_t>(ceiling(z.n, kTileRows), kMostTiles));
  Layout layout{static_cast<char*>(scratch)};
  layout.take(w.starts, w.sets * (w.tiles + 1) * w.lists);
  layout.take(w.rows, w.sets * w.lists * w.slots);
  if (values) {
    layout.take(w.weights, w.sets * w.lists * w.slots);
  } else {
    layout.take(w.places, w.sets * w.lists * w.slots);
    layout.take(parts, ceiling(z.c, kOfBlock<A>) * w.sets * w.lists * w.slots);
  }
  return layout.used;
}

template <class A>
cudaError_t launch_sort(const Tiled<A>& w, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceiling(w.lists, kSortWarps)), static_cast<unsigned>(std::min(w.sets, kMostY)));
  sort_by_tile<A><<<grid, kSortWarps * kWarp, 0, stream>>>(w);
  return cudaGetLastError();
}

template <class A, class M, int kPer, bool kDots>
cudaError_t launch_tiles(const Tiled<A>& w, const Turned<A, M>& z, cudaStream_t stream) {
  const int64_t groups = ceiling(w.lists, kPer * kTurnWarps);
  if (groups > kMostY) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(ceiling(z.c, kOfBlock<A>)), static_cast<unsigned>(groups),
                  static_cast<unsigned>(std::min(w.sets, kMostY)));
  walk_tiles<A, M, kPer, kDots><<<grid, kTurnThreads, 0, stream>>>(w, z);
  return cudaGetLastError();
}

// A warp has as many lists as leave a block for nearly every multiprocessor, since each group of them reads the matrix;
// more than there are would leave warps without work.
template <class A, class M, bool kDots>
cudaError_t walk(const Tiled<A>& w, const Turned<A, M>& z, cudaStream_t stream) {
  const int64_t columns = w.sets * ceiling(z.c, kOfBlock<A>);
  const auto fits = [&](int64_t per) {
    return columns * ceiling(w.lists, per * kTurnWarps) >= 120 && w.lists * 2 > per * kTurnWarps;
  };
  if constexpr (!kDots)  // of dots a lane has too many numbers then
    if (fits(8)) return launch_tiles<A, M, 8, kDots>(w, z, stream);
  if (fits(4) || ceiling(w.lists, kTurnWarps) > kMostY) return launch_tiles<A, M, 4, kDots>(w, z, stream);
  return fits(2) ? launch_tiles<A, M, 2, kDots>(w, z, stream) : launch_tiles<A, M, 1, kDots>(w, z, stream);
}

// How a matrix (C, N) is read: numbers one by one, which pays where few are named; as a whole, turned round in scratch;
// or tile by tile.
enum class Way { few, whole, walk };

constexpr int64_t kSmallMatrix = int64_t(16) << 20;  // bytes that stay in L2 while they are turned round
constexpr int64_t kManyLists = 1024;                 // beside which turning any matrix round is little work

template <class M>
bool small(const OpsSizes& z) {
  return z.p * z.n * z.c * int64_t(sizeof(M)) <= kSmallMatrix;
}

template <class M>
Way way_of(const OpsSizes& z) {
  const int64_t lists = z.p == 1 ? z.q * z.r : z.r;
  if (lists * z.s <= z.n / 4) return Way::few;
  return small<M>(z) || lists > kManyLists || z.n > int64_t(kTileRows) * kMostTiles ? Way::whole : Way::walk;
}

// From (sets, rows, columns) to (sets, columns, rows).
template <class T>
cudaError_t launch_turn(const T* from, T* to, int64_t sets, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t down = ceiling(rows, kSquare);
  if (down > kMostY) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(ceiling(columns, kSquare)), static_cast<unsigned>(down),
                  static_cast<unsigned>(std::min(sets, kMostY)));
  turn_round<T><<<grid, kSquare * kSquareRows, 0, stream>>>(from, to, sets, rows, columns);
  return cudaGetLastError();
}

template <class A, class M>
size_t scratch_of(const GatherCall<A, M>& call, Way way) {
  const OpsSizes& z = call.size;
  Tiled<A> w;
  A* parts = nullptr;
  if (way == Way::walk) return arrange(z, call.values, call.ids, call.count, nullptr, w, parts);
  return way == Way::whole ? z.p * z.n * z.c * sizeof(M) : 0;
}

template <class A, class M>
size_t scratch_of(const DotsCall<A, M>& call, Way way) {
  const OpsSizes& z = call.size;
  Tiled<A> w;
  A* parts = nullptr;
  if (way == Way::walk) return arrange<A>(z, nullptr, call.ids, call.count, nullptr, w, parts);
  return way == Way::whole ? z.p * z.n * z.c * sizeof(M) : 0;
}

// `call` with its matrix turned round in `scratch`.
template <class Call>
cudaError_t turn_matrix(Call& call, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const auto* const from = call.matrix;
  auto* const to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(scratch);
  call.matrix = to;
  return launch_turn(from, to, z.p, z.c, z.n, stream);
}

template <class A, class M>
cudaError_t gather_turned(GatherCall<A, M> call, Way way, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const size_t bytes = sizeof(A) * z.q * z.r * z.c;
  if (bytes == 0) return cudaSuccess;
  if (z.s * z.n == 0) return cudaMemsetAsync(call.out, 0, bytes, stream);
  if (way == Way::few) {
    const dim3 grid(static_cast<unsigned>(z.q * z.r), static_cast<unsigned>(std::min(ceiling(z.c, kFewWarps), kMostY)));
    gather_few<A, M><<<grid, kFewWarps * kWarp, 0, stream>>>(call);
    return cudaGetLastError();
  }
  if (way == Way::whole) {
    const cudaError_t error = turn_matrix(call, scratch, stream);
    return error == cudaSuccess ? sums(lists_of(call), sums_of(call), stream) : error;
  }
  Tiled<A> w;
  A* parts = nullptr;
  arrange(z, call.values, call.ids, call.count, scratch, w, parts);
  if (const cudaError_t error = launch_sort(w, stream); error != cudaSuccess) return error;
  return walk<A, M, false>(w, {call.matrix, nullptr, call.out, static_cast<int32_t>(z.c)}, stream);
}

template <class A, class M>
cudaError_t dots_of(const DotsCall<A, M>& call, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  constexpr int kPer = 16 / sizeof(M);
  const bool narrow = z.c <= 64 * kPer;  // few columns: more lanes would be added up for longer than they sum
  if (z.c % kPer == 0 && aligned(call.matrix) && aligned(call.g))
    return narrow ? launch_dots<A, M, true, 8>(call, stream) : launch_dots<A, M, true, 32>(call, stream);
  return narrow ? launch_dots<A, M, false, 8>(call, stream) : launch_dots<A, M, false, 32>(call, stream);
}

template <class A, class M>
cudaError_t dots_turned(DotsCall<A, M> call, Way way, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const size_t bytes = sizeof(A) * z.q * z.r * z.s;
  if (bytes == 0) return cudaSuccess;
  if (z.c * z.n == 0) return cudaMemsetAsync(call.out, 0, bytes, stream);
  if (way == Way::few) {
    const dim3 grid(static_cast<unsigned>(z.q * z.r), static_cast<unsigned>(std::min(ceiling(z.s, kWarp), kMostY)));
    dots_few<A, M><<<grid, kFewWarps * kWarp, 0, stream>>>(call);
    return cudaGetLastError();
  }
  if (way == Way::whole) {
    const cudaError_t error = turn_matrix(call, scratch, stream);
    return error == cudaSuccess ? dots_of(call, stream) : error;
  }
  Tiled<A> w;
  A* parts = nullptr;
  arrange<A>(z, nullptr, call.ids, call.count, scratch, w, parts);
  if (const cudaError_t error = launch_sort(w, stream); error != cudaSuccess) return error;
  const auto error = walk<A, M, true>(w, {call.matrix, call.g, parts, static_cast<int32_t>(z.c)}, stream);
  if (error != cudaSuccess) return error;
  add_parts<A><<<static_cast<unsigned>(w.sets * w.lists), kPartThreads, 0, stream>>>(
      w, parts, call.out, static_cast<int32_t>(ceiling(z.c, kOfBlock<A>)));
  return cudaGetLastError();
}

// `whole`: a result (C, N) is turned round once it is all there.
template <class A>
size_t scratch_of(const ScatterCall<A>& call, bool whole) {
  Inverted<A> w;
  const OpsSizes& z = call.size;
  return arrange(call, nullptr, w) + (whole ? z.p * z.n * z.c * sizeof(A) : 0);
}

template <class A>
cudaError_t scatter_of(ScatterCall<A> call, bool turned, bool whole, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const size_t bytes = sizeof(A) * z.p * z.n * z.c;
  if (bytes == 0) return cudaSuccess;
  if (z.q * z.r * z.s == 0) return cudaMemsetAsync(call.out, 0, bytes, stream);
  Inverted<A> w;
  const size_t used = arrange(call, scratch, w);
  if (const cudaError_t error = launch_invert(w, stream); error != cudaSuccess) return error;
  if (turned && !whole) return rows_of<A, kTurnedThreads, true>(w, sums_of(call), stream);
  A* const out = call.out;
  if (whole) call.out = reinterpret_cast<A*>(static_cast<char*>(scratch) + used);
  const cudaError_t error = rows_of<A, 512, false>(w, sums_of(call), stream);
  return error == cudaSuccess && whole ? launch_turn(call.out, out, z.p, z.n, z.c, stream) : error;
}

}  // namespace

template <class A>
size_t ops_scatter_scratch(const ScatterCall<A>& call, bool turned) {
  return scratch_of(call, turned && small<A>(call.size));
}

template <class A, class M>
cudaError_t ops_gather(const GatherCall<A, M>& call, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  return z.q * z.r * z.c == 0 ? cudaSuccess : sums(lists_of(call), sums_of(call), stream);
}

template <class A>
cudaError_t ops_scatter(const ScatterCall<A>& call, bool turned, void* scratch, cudaStream_t stream) {
  return scatter_of(call, turned, turned && small<A>(call.size), scratch, stream);
}

template <class A, class M>
cudaError_t ops_dots(const DotsCall<A, M>& call, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  return z.q * z.r * z.s == 0 ? cudaSuccess : dots_of(call, stream);
}

template <class A, class M>
size_t ops_gather_turned_scratch(const GatherCall<A, M>& call) {
  return scratch_of(call, way_of<M>(call.size));
}

template <class A, class M>
size_t ops_dots_turned_scratch(const DotsCall<A, M>& call) {
  return scratch_of(call, way_of<M>(call.size));
}

template <class A, class M>
cudaError_t ops_gather_turned(const GatherCall<A, M>& call, void* scratch, cudaStream_t stream) {
  return gather_turned(call, way_of<M>(call.size), scratch, stream);
}

template <class A, class M>
cudaError_t ops_dots_turned(const DotsCall<A, M>& call, void* scratch, cudaStream_t stream) {
  return dots_turned(call, way_of<M>(call.size), scratch, stream);
}

template <class A>
cudaError_t ops_spikes(const SpikesCall<A>& call, cudaStream_t stream) {
  if (call.r == 0) return cudaSuccess;
  // a warp for 128 neurons, as long as there are that many warps
  const int64_t warps = std::clamp<int64_t>(ceiling(call.n, 4 * kWarp), 1, kSpikeWarps);
  spikes<<<static_cast<unsigned>(call.r), static_cast<unsigned>(warps * kWarp), 0, stream>>>(call);
  return cudaGetLastError();
}

#define RANVIER_OPS_MATRIX(A, M)                                                        \
  template cudaError_t ops_gather(const GatherCall<A, M>&, cudaStream_t);               \
  template cudaError_t ops_dots(const DotsCall<A, M>&, cudaStream_t);                   \
  template size_t ops_gather_turned_scratch(const GatherCall<A, M>&);                   \
  template size_t ops_dots_turned_scratch(const DotsCall<A, M>&);                       \
  template cudaError_t ops_gather_turned(const GatherCall<A, M>&, void*, cudaStream_t); \
  template cudaError_t ops_dots_turned(const DotsCall<A, M>&, void*, cudaStream_t);
RANVIER_OPS_MATRIX(float, float)
RANVIER_OPS_MATRIX(double, double)
RANVIER_OPS_MATRIX(float, Bf16)
RANVIER_OPS_MATRIX(float, F16)
#undef RANVIER_OPS_MATRIX
template size_t ops_scatter_scratch(const ScatterCall<float>&, bool);
template size_t ops_scatter_scratch(const ScatterCall<double>&, bool);
template cudaError_t ops_scatter(const ScatterCall<float>&, bool, void*, cudaStream_t);
template cudaError_t ops_scatter(const ScatterCall<double>&, bool, void*, cudaStream_t);
template cudaError_t ops_spikes(const SpikesCall<float>&, cudaStream_t);
template cudaError_t ops_spikes(const SpikesCall<double>&, cudaStream_t);

}  // namespace ranvier
