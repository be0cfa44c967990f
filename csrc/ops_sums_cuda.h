// GPU: sums of rows that lists name, out[i, :] = sum over the list of i of value x[index, :]. It is `gather` with the
// lists of spikes, and `scatter` with those of ops_invert_cuda.h.
//
// A group of kLanes threads sums a list in its order for a tile of columns; each thread keeps 16 bytes of the result
// and has kAhead rows on their way. Blocks of the same tile are neighbours, and lists go through the rows in about the
// same order at the same time: what one reads others find in L1 or L2. A list of more than `alone` entries is shared by
// all groups of the block, whose sums are added in their order.
#pragma once
#include "ops_pieces_cuda.h"

namespace ranvier {
namespace ops {

template <class A>
struct Entry {
  int32_t index;  // row, -1: none
  A value;
};
struct Range {
  int32_t start, count;
};

// The lists of spikes. `n` rows may be named.
template <class A>
struct SpikeLists {
  const A* values;
  const int32_t *ids, *count;
  int64_t rows, slots;  // lists a set, their slots
  uint32_t n;
  __device__ __forceinline__ Range range(int64_t set, int64_t row) const {
    const int32_t used = __ldg(count + set * rows + row);
    return {0, used < 0 ? 0 : used < slots ? used : static_cast<int32_t>(slots)};
  }
  __device__ __forceinline__ Entry<A> at(int64_t set, int64_t row, int32_t k) const {
    const int64_t place = (set * rows + row) * slots + k;
    const int32_t id = __ldg(ids + place);
    const A value = __ldg(values + place);
    return static_cast<uint32_t>(id) < n ? Entry<A>{id, value} : Entry<A>{-1, A(0)};
  }
};

// Sums of lists, and where they go.
template <class A, class M>
struct Sums {
  const M* x;  // (sets, rows named, C)
  A* out;      // (sets, lists, C)
  int64_t sets, named, lists;
  int32_t c;
  int32_t each,
      block;      // lists a group, at most 32; lists a block, fewer than its groups could take where lists are few
  int32_t alone;  // entries of a list that a group sums alone
};

// Entries `from` to `to` of a list; all threads of the warp make as many `rounds` of kLanes entries.
template <int kLanes, int kAhead, class Lists, class A, class M, bool kWhole>
__device__ __forceinline__ void add_list(const Lists& lists, int64_t set, int64_t row, int32_t from, int32_t to,
                                         int32_t rounds, const M* tile, int32_t c, int32_t left, int lane,
                                         A (&sum)[Piece<M, kWhole, kLanes>::kPer]) {
  using Part = Piece<M, kWhole, kLanes>;
  constexpr Entry<A> kNone{-1, A(0)};
  Entry<A> next = from + lane < to ? lists.at(set, row, from + lane) : kNone;
  for (int32_t round = 0; round < rounds; ++round) {
    const Entry<A> entry = next;
    const int32_t k = from + (round + 1) * kLanes + lane;
    next = k < to ? lists.at(set, row, k) : kNone;
    const int32_t left_here = to - (from + round * kLanes);
    RANVIER_ROLLED
    for (int j = 0; j < kLanes; j += kAhead) {
      if (!__any_sync(kAll, j < left_here)) break;
      Part part[kAhead];
      RANVIER_UNROLL
      for (int u = 0; u < kAhead; ++u) {
        const int32_t index = __shfl_sync(kAll, entry.index, j + u, kLanes);
        if (index >= 0)
          part[u].template load<Cache::keep>(tile + int64_t(index) * c, lane, left);
        else
          part[u].clear();
      }
      RANVIER_UNROLL
      for (int u = 0; u < kAhead; ++u) {
        const A value = __shfl_sync(kAll, entry.value, j + u, kLanes);
        A x[Part::kPer];
        part[u].numbers(x);
        RANVIER_UNROLL
        for (int k = 0; k < Part::kPer; ++k) sum[k] += value * x[k];
      }
    }
  }
}

// The lists that `longs` says of each group, each by all groups of the block. Sums go `down` from a list to the next,
// `across` from a column to the next.
template <int kLanes, int kAhead, int kThreads, bool kWhole, class Lists, class A, class M>
__device__ __forceinline__ void add_long(const Lists& lists, const Sums<A, M>& z, int64_t set, int64_t first_of_block,
                                         const uint32_t (&longs)[kThreads / kLanes],
                                         A (&parts)[kThreads / kLanes][Piece<M, kWhole, kLanes>::kTile], const M* tile,
                                         A* out, int32_t left, int64_t down, int64_t across) {
  using Part = Piece<M, kWhole, kLanes>;
  constexpr int kGroups = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  for (int owner = 0; owner < kGroups; ++owner) {
    for (uint32_t bits = longs[owner]; bits; bits &= bits - 1) {
      const int64_t row = first_of_block + int64_t(owner) * z.each + __ffs(bits) - 1;
      const Range range = lists.range(set, row);
      const int32_t rounds = (range.count + kGroups * kLanes - 1) / (kGroups * kLanes);
      const int32_t end = range.start + range.count, share = group * rounds * kLanes;
      const int32_t from = share < range.count ? range.start + share : end;
      const int32_t to = end - from < rounds * kLanes ? end : from + rounds * kLanes;
      A sum[Part::kPer] = {};
      add_list<kLanes, kAhead, Lists, A, M, kWhole>(lists, set, row, from, to, rounds, tile, z.c, left, lane, sum);
      RANVIER_UNROLL
      for (int k = 0; k < Part::kPer; ++k) parts[group][Part::place(lane, k)] = sum[k];
      __syncthreads();
      for (int k = threadIdx.x; k < Part::kTile; k += kThreads) {
        A total = A(0);
        for (int part = 0; part < kGroups; ++part) total += parts[part][k];
        if (k < left) out[row * down + k * across] = total;
      }
      __syncthreads();
    }
  }
}

template <class Lists, class A, class M, bool kWhole, int kLanes, int kAhead, int kThreads>
static __global__ void __launch_bounds__(kThreads, (kWhole && kAhead <= 4 ? 1280 : 1024) / kThreads)
    sum_lists(Lists lists, Sums<A, M> z) {
  using Part = Piece<M, kWhole, kLanes>;
  using Store = Wide<A, M, kWhole, kLanes>;
  constexpr int kGroups = kThreads / kLanes, kTile = Part::kTile;
  static_assert(kLanes % kAhead == 0);
  __shared__ A parts[kGroups][kTile];
  __shared__ uint32_t longs[kGroups];
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int32_t column = int32_t(blockIdx.y) * kTile, left = z.c - column;
  const int64_t first_of_block = int64_t(blockIdx.x) * z.block;
  const int64_t stop = first_of_block + z.block < z.lists ? first_of_block + z.block : z.lists;
  for (int64_t set = blockIdx.z; set < z.sets; set += gridDim.z) {
    const M* tile = z.x + set * z.named * z.c + column;
    A* out = z.out + set * z.lists * z.c + column;
    const int64_t first = first_of_block + int64_t(group) * z.each;
    uint32_t wait = 0;  // lists that are too long for one group
    Range next = first < stop ? lists.range(set, first) : Range{0, 0};
    for (int32_t j = 0; j < z.each; ++j) {
      const int64_t row = first + j;
      const Range range = next;
      next = j + 1 < z.each && row + 1 < stop ? lists.range(set, row + 1) : Range{0, 0};
      const bool shared = range.count > z.alone;
      if (shared) wait |= 1u << j;
      const int32_t count = shared ? 0 : range.count;
      const int32_t most = static_cast<int32_t>(__reduce_max_sync(kAll, static_cast<unsigned>(count)));
      A sum[Part::kPer] = {};
      add_list<kLanes, kAhead, Lists, A, M, kWhole>(lists, set, row, range.start, range.start + count,
                                                    (most + kLanes - 1) / kLanes, tile, z.c, left, lane, sum);
      if (row < stop && !shared) Store::store(out + row * z.c, lane, left, sum);
    }
    if (!__syncthreads_or(wait != 0)) continue;
    if (lane == 0) longs[group] = wait;
    __syncthreads();
    add_long<kLanes, kAhead, kThreads, kWhole>(lists, z, set, first_of_block, longs, parts, tile, out, left, z.c, 1);
  }
}

}  // namespace ops
}  // namespace ranvier
