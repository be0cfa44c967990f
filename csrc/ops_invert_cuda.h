// GPU: lists of spikes inverted, for `scatter`: for each row of the matrix the lists that name it, always in the same
// order, whatever order threads run in.
//
// The lists of a set are cut into chunks. A block looks through all lists of a chunk for the ids of one window. Each
// warp counts the ids of its own lists; counts of the warps before it give the place of its first entry, and from there
// the warp goes through its lists as before. Nothing depends on who comes first: the warp alone moves its cursors.
// Counts of the chunks are added up by a kernel of their own in between. Few lists are inverted by ops_marks_cuda.h.
#pragma once
#include "ops_sums_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kInvertWarps = 32, kListsAWarp = 32;  // a lane a list
// lists of a chunk; chunks aimed at
constexpr int kLeastChunk = 64, kMostChunk = kInvertWarps * kListsAWarp, kChunks = 16;
constexpr int kMostWindow = 256, kLeastWindow = 8;

// One entry of an inverted list, in one load.
template <class A>
struct alignas(2 * sizeof(A)) Named {
  A value;
  int32_t list;
};

// Where the entries of each row of the matrix stand.
template <class A>
struct Inverted {
  const A* values;             // (sets, lists, slots)
  const int32_t *ids, *count;  // (sets, lists, slots), (sets, lists)
  int64_t sets, lists, slots, n;
  int32_t chunk, chunks, window;
  Named<A>* entries;  // (sets, lists slots)
  Range* ranges;      // (sets, n)
  int32_t* before;    // (sets, chunks, n) entries of a chunk, then of those before it
  int32_t* taken;     // (sets,)
  // instead of `before` where lists are inverted by marks; `chunk` is kWord then
  uint32_t* words;  // (sets, chunks, n) a bit a list of the chunk
  A* marked;        // (sets, n, lists) values, where there is a mark

  __device__ __forceinline__ Range range(int64_t set, int64_t row) const {
    const int2 x = __ldg(reinterpret_cast<const int2*>(ranges + set * n + row));
    return {x.x, x.y};
  }
  __device__ __forceinline__ Entry<A> at(int64_t set, int64_t, int32_t k) const {
    const Named<A>* place = entries + set * lists * slots + k;
    if constexpr (sizeof(A) == 4) {
      const float2 x = __ldg(reinterpret_cast<const float2*>(place));
      return {__float_as_int(x.y), x.x};
    } else {
      return {__ldg(&place->list), __ldg(&place->value)};
    }
  }
};

enum class Pass { count, place };

// All lanes get the sum of the lanes before them; `total` that of all.
__device__ __forceinline__ int32_t sum_before(int32_t x, int lane, int32_t& total) {
  int32_t sum = x;
  RANVIER_UNROLL
  for (int k = 1; k < kWarp; k *= 2) {
    const int32_t other = __shfl_up_sync(kAll, sum, k);
    if (lane >= k) sum += other;
  }
  total = __shfl_sync(kAll, sum, kWarp - 1);
  return sum - x;
}

template <class A, Pass kPass>
static __global__ void __launch_bounds__(kInvertWarps* kWarp) invert(Inverted<A> w) {
  constexpr int kRows = 8, kWide = 2;  // ids fetched together: 64 of each of 8 lists
  constexpr int kStride = kMostWindow + 1;
  __shared__ int32_t cursors[kInvertWarps * kStride];
  __shared__ int32_t totals[kMostWindow];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t low = uint32_t(blockIdx.x) * w.window;
  const int32_t width = w.n - low < w.window ? int32_t(w.n - low) : w.window;
  const int64_t first = int64_t(blockIdx.y) * w.chunk;
  const int32_t here = w.lists - first < w.chunk ? int32_t(w.lists - first) : w.chunk;
  const int32_t each = (here + kInvertWarps - 1) / kInvertWarps;
  int32_t* mine = cursors + warp * kStride;
  for (int64_t set = blockIdx.z; set < w.sets; set += gridDim.z) {
    const int32_t list0 = int32_t(first) + warp * each, slots = int32_t(w.slots);  // of this warp
    const int32_t* all_ids = w.ids + set * w.lists * w.slots;
    int32_t used = 0;
    if (lane < each && warp * each + lane < here) {
      used = __ldg(w.count + set * w.lists + list0 + lane);
      used = used < 0 ? 0 : used < slots ? used : slots;
    }
    // Calls body(ids of this lane, the first of their lists, this lane's slot in it) for all entries of the warp's
    // lists.
    const auto walk = [&](auto body) {
      for (int32_t b = 0; b < each; b += kRows) {
        int32_t longest = 0;
        RANVIER_UNROLL
        for (int u = 0; u < kRows; ++u) {
          const int32_t count = __shfl_sync(kAll, used, b + u);
          longest = count > longest ? count : longest;
        }
        for (int32_t s0 = 0; s0 < longest; s0 += kWide * kWarp) {
          int32_t ids[kRows * kWide];
          RANVIER_UNROLL
          for (int u = 0; u < kRows * kWide; ++u) {
            const int32_t s = s0 + u % kWide * kWarp + lane, count = __shfl_sync(kAll, used, b + u / kWide);
            ids[u] = s < count ? __ldg(all_ids + ((list0 + b + u / kWide) * slots + s)) : -1;
          }
          body(ids, list0 + b, s0 + lane);
        }
      }
    };
    const auto inside = [&](int32_t id) { return uint32_t(id) - low < uint32_t(width); };

    for (int k = threadIdx.x; k < kInvertWarps * kStride; k += kInvertWarps * kWarp) cursors[k] = 0;
    __syncthreads();
    walk([&](const int32_t (&ids)[kRows* kWide], int32_t, int32_t) {
      RANVIER_UNROLL
      for (int u = 0; u < kRows * kWide; ++u) {
        if (inside(ids[u])) atomicAdd(mine + (ids[u] - low), 1);
      }
    });
    __syncthreads();
    for (int k = warp; k < width; k += kInvertWarps) {
      int32_t total;
      const int32_t before = sum_before(cursors[lane * kStride + k], lane, total);
      cursors[lane * kStride + k] = before;
      if (lane == 0) totals[k] = total;
    }
    __syncthreads();
    int32_t* before = w.before + (set * w.chunks + blockIdx.y) * w.n + low;
    if constexpr (kPass == Pass::count) {
      for (int k = threadIdx.x; k < width; k += kInvertWarps * kWarp) before[k] = totals[k];
      if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) w.taken[set] = 0;
    } else {
      for (int k = threadIdx.x; k < width; k += kInvertWarps * kWarp)
        totals[k] = w.ranges[set * w.n + low + k].start + before[k];
      __syncthreads();
      Named<A>* entries = w.entries + set * w.lists * w.slots;
      const A* all_values = w.values + set * w.lists * w.slots;
      walk([&](const int32_t (&ids)[kRows* kWide], int32_t list, int32_t s) {
        A values[kRows * kWide];
        RANVIER_UNROLL
        for (int u = 0; u < kRows * kWide; ++u)
          values[u] = inside(ids[u]) ? __ldg(all_values + ((list + u / kWide) * slots + s + u % kWide * kWarp)) : A(0);
        RANVIER_UNROLL
        for (int u = 0; u < kRows * kWide; ++u) {
          const bool hit = inside(ids[u]);
          const uint32_t hits = __ballot_sync(kAll, hit);
          if (hits == 0) continue;
          uint32_t same = 0;
          int32_t at = 0;
          if (hit) {
            same = __match_any_sync(hits, ids[u]) & ((1u << lane) - 1);  // an id may stand in a list twice
            at = mine[ids[u] - low] + __popc(same);
          }
          __syncwarp();
          if (hit) atomicAdd(mine + (ids[u] - low), 1);
          __syncwarp();
          if (hit) entries[totals[ids[u] - low] + at] = {values[u], list + u / kWide};
        }
      });
    }
    __syncthreads();  // the next set starts from nothing
  }
}

constexpr int kAddThreads = 256;

// From the entries of each chunk to those before it, and the place of the first entry of each row of the matrix. Which
// rows come first in memory depends on which block does; what stands in a list does not.
static __global__ void __launch_bounds__(kAddThreads)
    add_chunks(int32_t* before, int32_t* taken, Range* ranges, int64_t sets, int64_t n, int32_t chunks) {
  __shared__ int32_t sums[kAddThreads / kWarp];
  __shared__ int32_t base;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t i = int64_t(blockIdx.x) * kAddThreads + threadIdx.x;
  for (int64_t set = blockIdx.y; set < sets; set += gridDim.y) {
    int32_t count = 0;
    if (i < n) {
      int32_t* column = before + set * chunks * n + i;
#pragma unroll 8
      for (int32_t k = 0; k < chunks; ++k) {
        const int32_t here = column[k * n];
        column[k * n] = count;
        count += here;
      }
    }
    int32_t total;
    int32_t at = sum_before(count, lane, total);
    if (lane == 0) sums[warp] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
      int32_t all = 0;
      for (int k = 0; k < kAddThreads / kWarp; ++k) {
        const int32_t here = sums[k];
        sums[k] = all;
        all += here;
      }
      base = atomicAdd(taken + set, all);
    }
    __syncthreads();
    if (i < n) ranges[set * n + i] = {base + sums[warp] + at, count};
    __syncthreads();
  }
}

}  // namespace ops
}  // namespace ranvier
