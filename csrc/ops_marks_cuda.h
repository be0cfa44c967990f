// GPU: lists of spikes inverted by marks, for `scatter` with few lists: one bit for each row of the matrix and list.
//
// A block has 32 lists, which share the words of all rows, so it sets bits in shared memory alone; the value of each
// entry goes to a place of its own beside. Bits know no order: in the inverted list of a row, lists ascend, whoever
// marked first. What a list names twice is added up by its warp.
#pragma once
#include "ops_invert_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kWord = 32;                                                   // lists whose marks are one word
constexpr int kMarkedRows = 1024;                                           // rows whose words a block has
constexpr int kMostWords = 128;                                             // words of a row
constexpr int64_t kMostMarked = int64_t(1) << 24, kMostMarkedSlots = 4096;  // values kept; slots of a list

// A warp a list.
template <class A>
static __global__ void __launch_bounds__(kWord* kWarp) mark_lists(Inverted<A> w) {
  constexpr int kWide = 4;  // ids of a lane on their way
  __shared__ uint32_t marks[kMarkedRows];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t list = int32_t(blockIdx.x) * kWord + warp, slots = int32_t(w.slots);
  const uint32_t low = blockIdx.y * kMarkedRows;
  const uint32_t width = uint32_t(w.n) - low < kMarkedRows ? uint32_t(w.n) - low : kMarkedRows;
  for (int64_t set = blockIdx.z; set < w.sets; set += gridDim.z) {
    int32_t used = list < w.lists ? __ldg(w.count + set * w.lists + list) : 0;
    used = used < 0 ? 0 : used < slots ? used : slots;
    const int32_t* ids = w.ids + (set * w.lists + list) * w.slots;
    const A* values = w.values + (set * w.lists + list) * w.slots;
    A* marked = w.marked + (set * w.n + low) * w.lists + list;
    for (uint32_t k = threadIdx.x; k < width; k += kWord * kWarp) marks[k] = 0;
    __syncthreads();
    for (int32_t s0 = 0; s0 < used; s0 += kWide * kWarp) {
      uint32_t rows[kWide];
      A value[kWide];
      RANVIER_UNROLL
      for (int u = 0; u < kWide; ++u) {
        const int32_t s = s0 + u * kWarp + lane;
        rows[u] = s < used ? uint32_t(__ldg(ids + s)) - low : width;
        value[u] = s < used ? __ldg(values + s) : A(0);
      }
      RANVIER_UNROLL
      for (int u = 0; u < kWide; ++u) {
        bool twin = false;
        if (rows[u] < width) {
          twin = atomicOr(marks + rows[u], 1u << warp) >> warp & 1;
          if (!twin) marked[int64_t(rows[u]) * w.lists] = value[u];
        }
        uint32_t twins = __ballot_sync(kAll, twin);
        while (twins) {  // the sum of all that name the row, in place of the one that came first
          const uint32_t row = __shfl_sync(kAll, rows[u], __ffs(twins) - 1);
          A sum = A(0);
          for (int32_t s = lane; s < used; s += kWarp)
            if (uint32_t(__ldg(ids + s)) - low == row) sum += __ldg(values + s);
          sum = warp_sum(sum);
          __syncwarp();
          if (lane == 0) marked[int64_t(row) * w.lists] = sum;
          twins &= ~__ballot_sync(kAll, rows[u] == row);
        }
      }
    }
    __syncthreads();
    uint32_t* words = w.words + (set * w.chunks + blockIdx.x) * w.n + low;
    for (uint32_t k = threadIdx.x; k < width; k += kWord * kWarp) words[k] = marks[k];
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) w.taken[set] = 0;
    __syncthreads();  // the next set starts from nothing
  }
}

// A block has 32 rows, one a lane; its warps share their words. Which rows come first in memory depends on which block
// does; what stands in a list does not.
template <class A>
static __global__ void __launch_bounds__(kWarp* kWarp) collect_marks(Inverted<A> w) {
  __shared__ int32_t before[kMostWords][kWarp];  // entries of words before, each row
  __shared__ int32_t totals[kWarp];
  __shared__ int32_t base;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int64_t row = int64_t(blockIdx.x) * kWarp + lane;
  for (int64_t set = blockIdx.y; set < w.sets; set += gridDim.y) {
    const uint32_t* words = w.words + set * w.chunks * w.n + row;
    for (int32_t k = warp; k < w.chunks; k += warps) before[k][lane] = row < w.n ? __popc(words[k * w.n]) : 0;
    __syncthreads();
    if (warp == 0) {
      int32_t sum = 0;
#pragma unroll 8
      for (int32_t k = 0; k < w.chunks; ++k) {
        const int32_t here = before[k][lane];
        before[k][lane] = sum;
        sum += here;
      }
      totals[lane] = sum;
    }
    __syncthreads();
    const int32_t count = totals[lane];
    int32_t total;
    int32_t at = sum_before(count, lane, total);
    if (threadIdx.x == 0) base = atomicAdd(w.taken + set, total);
    __syncthreads();
    at += base;
    if (row < w.n) {
      if (warp == 0) w.ranges[set * w.n + row] = {at, count};
      Named<A>* entries = w.entries + set * w.lists * w.slots;
      const A* marked = w.marked + (set * w.n + row) * w.lists;
      for (int32_t k = warp; k < w.chunks; k += warps) {
        int32_t place = at + before[k][lane];
        for (uint32_t word = words[k * w.n]; word; word &= word - 1) {
          const int32_t list = k * kWord + __ffs(word) - 1;
          entries[place++] = {marked[list], list};
        }
      }
    }
    __syncthreads();  // the next set starts from nothing
  }
}

}  // namespace ops
}  // namespace ranvier
