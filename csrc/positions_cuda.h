// GPU: from the adjoints of delays back to the positions that the delays are made of (positions.h, Eq. 25). Each number
// is a sum of one warp or of one block in an order that never changes.
#pragma once
#include "positions.h"
#include "warp_cuda.h"

namespace ranvier {
namespace positions {

constexpr int kTogether = 4;  // dimensions whose sums are formed together
constexpr int kWarps = 16;    // that share the sources of a tile of targets

RANVIER_HD int64_t tiles(int64_t n) { return (n + kWarp - 1) / kWarp; }

// What dL/dd of the synapse between p and q adds to dL/dp in the dimensions from `a0` on.
template <class R>
__device__ __forceinline__ void add_force(const R* p, const R* q, int64_t dims, int64_t a0, R dd, R longest, R* sums) {
  const R force = pull(dd, distance(p, q, dims), longest);
  RANVIER_UNROLL
  for (int u = 0; u < kTogether; ++u)
    if (a0 + u < dims) sums[u] += force * (p[a0 + u] - q[a0 + u]);
}

// dL/dp of the sources: a warp each, whose lanes share the targets. dd (P, sources, N), dx (P, sources + N, D).
template <class R>
static __global__ void to_sources(Delays<R> d, const R* dd, int64_t sets, R* dx) {
  const int64_t at = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (at >= sets * d.sources) return;
  const int64_t set = at / d.sources, points = set * (d.sources + d.n) * d.dims;
  const R *targets = d.ends + points + d.sources * d.dims, *p = d.ends + points + at % d.sources * d.dims;
  const R longest = d.longest[set];
  for (int64_t a0 = 0; a0 < d.dims; a0 += kTogether) {
    R sums[kTogether] = {};
    for (int64_t k = lane; k < d.n; k += kWarp)
      add_force(p, targets + k * d.dims, d.dims, a0, dd[at * d.n + k], longest, sums);
    RANVIER_UNROLL
    for (int u = 0; u < kTogether; ++u) {
      for (int x = kWarp / 2; x > 0; x /= 2) sums[u] += __shfl_xor_sync(0xffffffffu, sums[u], x);
      if (lane == 0 && a0 + u < d.dims) dx[points + at % d.sources * d.dims + a0 + u] = sums[u];
    }
  }
}

// dL/dq of the targets: a block a tile of 32, one a lane, whose warps share the sources.
template <class R>
static __global__ void to_targets(Delays<R> d, const R* dd, R* dx) {
  __shared__ R parts[kWarps][kTogether][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t n_tiles = tiles(d.n), set = blockIdx.x / n_tiles;
  const int64_t target = blockIdx.x % n_tiles * kWarp + lane, k = target < d.n ? target : d.n - 1;
  const int64_t points = set * (d.sources + d.n) * d.dims;
  const R *sources = d.ends + points, *q = sources + (d.sources + k) * d.dims, *column = dd + set * d.sources * d.n + k;
  const R longest = d.longest[set];
  for (int64_t a0 = 0; a0 < d.dims; a0 += kTogether) {
    R sums[kTogether] = {};
    for (int64_t j = warp; j < d.sources; j += kWarps)
      add_force(q, sources + j * d.dims, d.dims, a0, column[j * d.n], longest, sums);
    RANVIER_UNROLL
    for (int u = 0; u < kTogether; ++u) parts[warp][u][lane] = sums[u];
    __syncthreads();
    if (warp < kTogether && a0 + warp < d.dims && target < d.n) {
      R total = R(0);
      for (int x = 0; x < kWarps; ++x) total += parts[x][warp][lane];
      dx[points + (d.sources + k) * d.dims + a0 + warp] = total;
    }
    __syncthreads();
  }
}

}  // namespace positions
}  // namespace ranvier
