// What the kernels of ranvier.ops on the GPU read and write at once: 16 bytes of a row of a matrix a thread, in the
// type of the matrix until they are needed. Rows whose length or place does not allow that are read number by number.
#pragma once
#include <cuda_fp16.h>

#include "ops_call.h"
#include "warp_cuda.h"

namespace ranvier {
namespace ops {

// How a load of a row treats the L1 cache.
enum class Cache { keep, pass };

template <Cache kCache>
__device__ __forceinline__ uint4 load_16(const void* place) {
  uint4 x;
  if constexpr (kCache == Cache::pass)
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(place));
  else
    x = __ldg(static_cast<const uint4*>(place));
  return x;
}

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ double number(double x) { return x; }
__device__ __forceinline__ float number(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float number(F16 x) { return __half2float(__ushort_as_half(x.bits)); }

// The part of a row of M that one of kLanes threads holds: side by side where whole pieces are loaded, else kLanes
// apart.
template <class M, bool kWhole, int kLanes>
struct Piece {
  static constexpr int kPer = 16 / sizeof(M);
  static constexpr int kTile = kPer * kLanes;  // numbers that the kLanes threads hold together
  union {
    uint4 all;
    M each[kPer];
  };

  // Where number k of thread `lane` is in the tile.
  static __device__ __forceinline__ int place(int lane, int k) { return kWhole ? lane * kPer + k : k * kLanes + lane; }
  __device__ __forceinline__ void clear() { all = uint4{0, 0, 0, 0}; }
  // `left`: numbers from the start of the tile to the end of the row.
  template <Cache kCache>
  __device__ __forceinline__ void load(const M* tile, int lane, int32_t left) {
    if constexpr (kWhole) {
      if (lane * kPer < left)
        all = load_16<kCache>(tile + lane * kPer);
      else
        clear();
    } else {
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k) each[k] = place(lane, k) < left ? tile[place(lane, k)] : M{};
    }
  }
  template <class A>
  __device__ __forceinline__ void numbers(A (&x)[kPer]) const {
    if constexpr (sizeof(M) == 2) {
      const uint32_t words[4] = {all.x, all.y, all.z, all.w};
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k) x[k] = number(M{static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16))});
    } else {
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k) x[k] = number(each[k]);
    }
  }
};

// The same numbers of a row of A, which may have other bytes than M: for sums and what they are multiplied with.
template <class A, class M, bool kWhole, int kLanes>
struct Wide {
  using Part = Piece<M, kWhole, kLanes>;
  static constexpr int kPer = Part::kPer, kPieces = kPer * int(sizeof(A)) / 16;
  static __device__ __forceinline__ void load(const A* tile, int lane, int32_t left, A (&x)[kPer]) {
    if constexpr (kWhole) {
      RANVIER_UNROLL
      for (int k = 0; k < kPieces; ++k) {
        Piece<A, true, 1> piece;
        piece.clear();
        if (lane * kPer < left) piece.all = load_16<Cache::keep>(tile + lane * kPer + k * piece.kPer);
        RANVIER_UNROLL
        for (int u = 0; u < piece.kPer; ++u) x[k * piece.kPer + u] = piece.each[u];
      }
    } else {
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k) x[k] = Part::place(lane, k) < left ? tile[Part::place(lane, k)] : A(0);
    }
  }
  static __device__ __forceinline__ void store(A* tile, int lane, int32_t left, const A (&x)[kPer]) {
    if constexpr (kWhole) {
      if (lane * kPer >= left) return;
      RANVIER_UNROLL
      for (int k = 0; k < kPieces; ++k) {
        Piece<A, true, 1> piece;
        RANVIER_UNROLL
        for (int u = 0; u < piece.kPer; ++u) piece.each[u] = x[k * piece.kPer + u];
        *reinterpret_cast<uint4*>(tile + lane * kPer + k * piece.kPer) = piece.all;
      }
    } else {
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k)
        if (Part::place(lane, k) < left) tile[Part::place(lane, k)] = x[k];
    }
  }
};

}  // namespace ops
}  // namespace ranvier
