// GPU: products of the rows of a matrix that lists name with a row of g, out[q, r, s] = <matrix[ids[s], :], g[q, r,
// :]>.
//
// A group of kLanes threads has kEntries entries of a list at once: a piece of g, which L1 keeps, meets a piece of each
// of their rows, which pass L1 by. Blocks come in the order of the slots, all lists of a batch side by side; since
// lists ascend, they meet the same rows of the matrix at the same time and find them in L2.
#pragma once
#include "ops_pieces_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kEntries = 4, kDotsThreads = 256;

// What the threads of a group have of kEntries sums becomes the sums: each lane gets that of the entry it returns.
template <int kLanes, class A>
__device__ __forceinline__ int spread_sums(A (&x)[kEntries], int lane) {
  static_assert(kEntries == 4 && kLanes >= 4);
  const bool high = lane & (kLanes / 2), odd = lane & (kLanes / 4);
  const A a = __shfl_xor_sync(kAll, high ? x[0] : x[2], kLanes / 2);
  const A b = __shfl_xor_sync(kAll, high ? x[1] : x[3], kLanes / 2);
  x[0] = (high ? x[2] : x[0]) + a, x[1] = (high ? x[3] : x[1]) + b;
  const A c = __shfl_xor_sync(kAll, odd ? x[0] : x[1], kLanes / 4);
  x[0] = (odd ? x[1] : x[0]) + c;
  RANVIER_UNROLL
  for (int k = kLanes / 8; k > 0; k /= 2) x[0] += __shfl_xor_sync(kAll, x[0], k);
  return 2 * high + odd;
}

template <class A, class M, bool kWhole, int kLanes>
static __global__ void __launch_bounds__(kDotsThreads) dots(DotsCall<A, M> call) {
  using Part = Piece<M, kWhole, kLanes>;
  constexpr int kPer = Part::kPer, kGroups = kDotsThreads / kLanes;
  const OpsSizes& z = call.size;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int64_t list = blockIdx.x, set = z.p == 1 ? 0 : list / z.r;
  const int32_t used = __ldg(call.count + list), slots = int32_t(z.s), columns = int32_t(z.c);
  const int32_t count = used < 0 ? 0 : used < slots ? used : slots;
  const M* matrix = call.matrix + set * z.n * z.c;
  const A* g = call.g + list * z.c;
  for (int32_t first = blockIdx.y * (kGroups * kEntries); first < slots; first += gridDim.y * (kGroups * kEntries)) {
    const int32_t s0 = first + group * kEntries;
    const M* rows[kEntries];
    bool named[kEntries], any = false;
    RANVIER_UNROLL
    for (int e = 0; e < kEntries; ++e) {
      const int32_t id = s0 + e < count ? __ldg(call.ids + list * z.s + s0 + e) : -1;
      named[e] = id >= 0 && id < z.n, any |= named[e];
      rows[e] = matrix + (named[e] ? id : 0) * z.c;
    }
    A sums[kEntries] = {};
    if (any) {
#pragma unroll 2
      for (int32_t column = 0; column < columns; column += Part::kTile) {
        Part part[kEntries];
        A by[kPer];
        RANVIER_UNROLL
        for (int e = 0; e < kEntries; ++e) part[e].template load<Cache::pass>(rows[e] + column, lane, columns - column);
        Wide<A, M, kWhole, kLanes>::load(g + column, lane, columns - column, by);
        RANVIER_UNROLL
        for (int e = 0; e < kEntries; ++e) {
          A x[kPer];
          part[e].numbers(x);
          RANVIER_UNROLL
          for (int k = 0; k < kPer; ++k) sums[e] += x[k] * by[k];
        }
      }
    }
    __syncwarp();
    const int e = spread_sums<kLanes>(sums, lane);
    // where a slot names nothing the sum is that of row 0
    const bool good = e == 0 ? named[0] : e == 1 ? named[1] : e == 2 ? named[2] : named[3];
    if (lane % (kLanes / 4) == 0 && s0 + e < slots) call.out[list * z.s + s0 + e] = good ? sums[0] : A(0);
  }
}

}  // namespace ops
}  // namespace ranvier
