// GPU: the rows of `scatter`, out[i, :] = sum over the inverted list of i of value g[list, :].
//
// A group of kLanes threads has up to as many rows for a tile of columns. Their lists lie one behind the other, so the
// group goes through all entries in one stream, kAhead rows of g on their way, and stores where a list ends: lists of
// two or three entries cost no more than their entries do. Lists of more than `alone` are left to the whole block.
//
// A result that is stored the other way round, (C, N), is turned in shared memory.
#pragma once
#include "ops_invert_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kTurnedRows = 64, kTurnedThreads = 256;  // of a block whose result is turned

// The inverted lists of rows from a multiple of kWarp to the next lie one behind the other in memory.
template <class A, bool kWhole, int kLanes, int kAhead, int kThreads, bool kTurned>
static __global__ void __launch_bounds__(kThreads, (kWhole && kAhead <= 4 ? 1280 : 1024) / kThreads)
    add_rows(Inverted<A> lists, Sums<A, A> z) {
  using Part = Piece<A, kWhole, kLanes>;
  using Store = Wide<A, A, kWhole, kLanes>;
  constexpr int kGroups = kThreads / kLanes, kTile = Part::kTile;
  constexpr uint32_t kGroupBits = kAll >> (kWarp - kLanes);
  __shared__ A parts[kGroups][kTile];
  __shared__ uint32_t longs[kGroups];
  __shared__ A turned[kTurned ? kTurnedRows : 1][kTile + 1];
  __shared__ int32_t starts[kGroups][kLanes], ends[kGroups][kLanes];
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int32_t column = int32_t(blockIdx.y) * kTile, left = z.c - column;
  const int64_t first_of_block = int64_t(blockIdx.x) * z.block;
  const int64_t stop = first_of_block + z.block < z.lists ? first_of_block + z.block : z.lists;
  // which lanes of the group say so
  const auto which = [&](bool x) {
    return __ballot_sync(kAll, x) >> (threadIdx.x % kWarp / kLanes * kLanes) & kGroupBits;
  };
  constexpr Entry<A> kNone{-1, A(0)};
  const A zero[Part::kPer] = {};
  for (int64_t set = blockIdx.z; set < z.sets; set += gridDim.z) {
    const A* tile = z.x + set * z.named * z.c + column;
    A* out = z.out + set * z.lists * z.c + (kTurned ? column * z.lists : column);
    const int64_t first = first_of_block + int64_t(group) * z.each;
    const auto put = [&](int32_t row, const A(&sum)[Part::kPer]) {
      if constexpr (kTurned) {
        RANVIER_UNROLL
        for (int k = 0; k < Part::kPer; ++k) turned[group * z.each + row][Part::place(lane, k)] = sum[k];
      } else {
        Store::store(out + (first + row) * z.c, lane, left, sum);
      }
    };
    const bool mine = lane < z.each && first + lane < stop;
    const Range range = mine ? lists.range(set, first + lane) : Range{0, 0};
    starts[group][lane] = range.start, ends[group][lane] = range.start + range.count;
    const uint32_t wait = which(range.count > z.alone);  // lists that are too long for one group
    uint32_t todo = which(range.count > 0 && range.count <= z.alone);
    for (uint32_t bits = which(mine && range.count == 0); bits; bits &= bits - 1) put(__ffs(bits) - 1, zero);
    __syncwarp();
    while (__any_sync(kAll, todo != 0)) {
      // lists up to the next long one
      uint32_t run = todo;
      if (const uint32_t later = wait & ~((todo & (0u - todo)) - 1); later) run &= (later & (0u - later)) - 1;
      todo &= ~run;
      const int32_t from = run ? starts[group][__ffs(run) - 1] : 0;
      const int32_t length = run ? ends[group][kWarp - 1 - __clz(run)] - from : 0;
      const int32_t most = static_cast<int32_t>(__reduce_max_sync(kAll, static_cast<unsigned>(length)));
      int32_t row = __ffs(run) - 1, end = run ? ends[group][row] - from : 0;
      A sum[Part::kPer] = {};
      Entry<A> next = lane < length ? lists.at(set, 0, from + lane) : kNone;
      for (int32_t done = 0; done < most; done += kLanes) {
        const Entry<A> entry = next;
        next = done + kLanes + lane < length ? lists.at(set, 0, from + done + kLanes + lane) : kNone;
        RANVIER_ROLLED
        for (int j = 0; j < kLanes; j += kAhead) {
          if (done + j >= most) break;
          Part part[kAhead];
          RANVIER_UNROLL
          for (int u = 0; u < kAhead; ++u) {
            const int32_t index = __shfl_sync(kAll, entry.index, j + u, kLanes);
            if (index >= 0)
              part[u].template load<Cache::keep>(tile + int64_t(index) * z.c, lane, left);
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
            if (done + j + u + 1 == end) {
              put(row, sum);
              RANVIER_UNROLL
              for (int k = 0; k < Part::kPer; ++k) sum[k] = A(0);
              run &= run - 1;
              row = __ffs(run) - 1;
              end = run ? ends[group][row] - from : 0;
            }
          }
        }
      }
    }
    if (lane == 0) longs[group] = wait;
    const bool any_long = __syncthreads_or(wait != 0);
    if constexpr (kTurned) {
      static_assert(kThreads % kTurnedRows == 0);
      const int row = threadIdx.x % kTurnedRows;
      if (first_of_block + row < stop && !(longs[row / z.each] >> row % z.each & 1)) {
        A* place = out + first_of_block + row;
#pragma unroll 4
        for (int k = threadIdx.x / kTurnedRows; k < kTile; k += kThreads / kTurnedRows)
          if (k < left) place[k * z.lists] = turned[row][k];
      }
    }
    if (any_long)
      add_long<kLanes, kAhead, kThreads, kWhole>(lists, z, set, first_of_block, longs, parts, tile, out, left,
                                                 kTurned ? 1 : z.c, kTurned ? z.lists : 1);
    __syncthreads();  // the next set starts anew
  }
}

}  // namespace ops
}  // namespace ranvier
