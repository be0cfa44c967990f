// GPU: gather and dots with a matrix that is stored the other way round, (C, N): lists name its columns.
//
// To read a column is to read a whole piece of memory for one number, so the matrix is read as it lies, all of it once:
// a block has some columns of the result, a tile of them and of kTileRows rows at a time in shared memory, turned
// round, and goes through what its lists name there. For that the entries of each list are sorted by tile first, in
// their order within a tile. Where lists name few numbers of the matrix, they are read one by one.
#pragma once
#include "ops_dots_cuda.h"
#include "ops_invert_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kTileRows = 128, kMostTiles = 1024;
constexpr int kTurnThreads = 1024, kTurnWarps = kTurnThreads / kWarp;
constexpr int kSortWarps = 8;
// columns of the result that a lane has, and a block
template <class A>
constexpr int kOfLane = 8 / sizeof(A);
template <class A>
constexpr int kOfBlock = kOfLane<A> * kWarp;

// Lists by tile.
template <class A>
struct Tiled {
  const A* values;             // (sets, lists, slots), null: sorted entries are slots
  const int32_t *ids, *count;  // (sets, lists, slots), (sets, lists)
  int64_t sets, lists, slots, n;
  int32_t tiles;
  int32_t* rows;    // (sets, lists, slots) row in its tile
  A* weights;       // (sets, lists, slots) value, or
  int32_t* places;  // (sets, lists, slots) slot
  int32_t* starts;  // (sets, tiles + 1, lists) the first entry of a tile
};

// A warp a list.
template <class A>
static __global__ void __launch_bounds__(kSortWarps* kWarp) sort_by_tile(Tiled<A> w) {
  __shared__ int32_t cursors[kSortWarps][kMostTiles];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t list = int64_t(blockIdx.x) * kSortWarps + warp;
  int32_t* mine = cursors[warp];
  if (list >= w.lists) return;  // nobody waits for a warp
  for (int64_t set = blockIdx.y; set < w.sets; set += gridDim.y) {
    const int64_t first = (set * w.lists + list) * w.slots;
    const int32_t slots = int32_t(w.slots), given = __ldg(w.count + set * w.lists + list);
    const int32_t used = given < 0 ? 0 : given < slots ? given : slots;
    for (int32_t t = lane; t < w.tiles; t += kWarp) mine[t] = 0;
    __syncwarp();
    for (int32_t s = lane; s < used; s += kWarp) {
      const int32_t id = __ldg(w.ids + first + s);
      if (id >= 0 && id < w.n) atomicAdd(mine + id / kTileRows, 1);
    }
    __syncwarp();
    int32_t* starts = w.starts + set * (w.tiles + 1) * w.lists + list;
    int32_t before = 0;
    for (int32_t t = lane; t - lane < w.tiles; t += kWarp) {
      int32_t total;
      const int32_t at = before + sum_before(t < w.tiles ? mine[t] : 0, lane, total);
      if (t < w.tiles) mine[t] = at, starts[t * w.lists] = at;
      before += total;
    }
    if (lane == 0) starts[w.tiles * w.lists] = before;
    __syncwarp();
    for (int32_t s = lane; s - lane < used; s += kWarp) {
      const int32_t id = s < used ? __ldg(w.ids + first + s) : -1;
      const bool good = id >= 0 && id < w.n;
      const int32_t tile = good ? id / kTileRows : -1;
      const uint32_t same = __match_any_sync(kAll, tile);
      const int32_t at = good ? mine[tile] + __popc(same & ((1u << lane) - 1)) : 0;
      __syncwarp();
      if (good) {
        if (__ffs(same) - 1 == lane) mine[tile] += __popc(same);
        w.rows[first + at] = id % kTileRows;
        if (w.values)
          w.weights[first + at] = __ldg(w.values + first + s);
        else
          w.places[first + at] = s;
      }
      __syncwarp();
    }
    __syncwarp();
  }
}

// The sums of a block's columns. gather: `out` is (sets, lists, C). dots: (blocks of columns, sets, lists, slots), what
// the columns of a block give to each sorted entry.
template <class A, class M>
struct Turned {
  const M* matrix;  // (sets, C, N)
  const A* g;       // dots: (sets, lists, C)
  A* out;
  int32_t c;
};

// A warp has kPer lists, a lane some columns.
template <class A, class M, int kPer, bool kDots>
static __global__ void __launch_bounds__(kTurnThreads) walk_tiles(Tiled<A> w, Turned<A, M> z) {
  constexpr int kOf = kOfLane<A>, kColumns = kOfBlock<A>, kSpan = kWarp / kPer;
  constexpr int kDown = kTileRows / kWarp, kLoads = kColumns / kTurnWarps * kDown;
  __shared__ A tile[kTileRows][kColumns + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t column = int32_t(blockIdx.x) * kColumns, slots = int32_t(w.slots);
  const int64_t list0 = (int64_t(blockIdx.y) * kTurnWarps + warp) * kPer;
  const int64_t mine = list0 + lane / kSpan;  // list whose entries this lane fetches
  for (int64_t set = blockIdx.z; set < w.sets; set += gridDim.z) {
    const M* matrix = z.matrix + (set * z.c + column) * w.n;
    const int32_t* starts = w.starts + set * (w.tiles + 1) * w.lists + mine;
    const int64_t entries = (set * w.lists + mine) * w.slots;
    const auto start = [&](int32_t t) {
      return mine < w.lists ? __ldg(starts + (t < w.tiles ? t : w.tiles) * w.lists) : 0;
    };
    M part[kLoads];
    const auto fetch = [&](int32_t t) {
      RANVIER_UNROLL
      for (int u = 0; u < kLoads; ++u) {
        const int32_t k = warp * (kLoads / kDown) + u / kDown;
        const int64_t i = int64_t(t) * kTileRows + u % kDown * kWarp + lane;
        part[u] = column + k < z.c && i < w.n ? matrix[k * w.n + i] : M{};
      }
    };
    A sums[kPer][kOf] = {}, by[kPer][kOf];
    if constexpr (kDots) {
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k) {
        RANVIER_UNROLL
        for (int h = 0; h < kOf; ++h) {
          const int32_t at = column + h * kWarp + lane;
          by[k][h] = list0 + k < w.lists && at < z.c ? __ldg(z.g + (set * w.lists + list0 + k) * z.c + at) : A(0);
        }
      }
    }
    int32_t row = 0;
    A weight = A(0);
    const auto entry = [&](int32_t from, int32_t to) {
      const int32_t k = from + lane % kSpan;
      row = k < to ? __ldg(w.rows + entries + k) : 0;
      if constexpr (!kDots) weight = k < to ? __ldg(w.weights + entries + k) : A(0);
    };
    int32_t from = start(0), to = start(1), next_to = start(2);
    fetch(0);
    entry(from, to);
    for (int32_t t = 0; t < w.tiles; ++t) {
      RANVIER_UNROLL
      for (int u = 0; u < kLoads; ++u)
        tile[u % kDown * kWarp + lane][warp * (kLoads / kDown) + u / kDown] = number(part[u]);
      __syncthreads();
      if (t + 1 < w.tiles) fetch(t + 1);
      const int32_t next_next_to = start(t + 3);
      for (;;) {
        const int32_t row_here = row;
        const A weight_here = weight;
        const bool more = __any_sync(kAll, from + kSpan < to);
        // what comes next, while this is added
        if (more)
          entry(from + kSpan, to);
        else
          entry(to, next_to);
        RANVIER_UNROLL
        for (int k = 0; k < kPer; ++k) {
          const int32_t here = __shfl_sync(kAll, to - from, k * kSpan), n = here < kSpan ? here : kSpan;
          if constexpr (kDots) {
            const int32_t place = __shfl_sync(kAll, from, k * kSpan);
            RANVIER_ROLLED
            for (int j = 0; j < n; j += kEntries) {
              A products[kEntries];
              RANVIER_UNROLL
              for (int e = 0; e < kEntries; ++e) {
                const A* numbers = tile[__shfl_sync(kAll, row_here, k * kSpan + (j + e) % kSpan)];
                products[e] = A(0);
                RANVIER_UNROLL
                for (int h = 0; h < kOf; ++h) products[e] += numbers[h * kWarp + lane] * by[k][h];
              }
              const int e = spread_sums<kWarp>(products, lane);
              if (lane % (kWarp / kEntries) == 0 && j + e < n)
                z.out[((int64_t(blockIdx.x) * w.sets + set) * w.lists + list0 + k) * slots + place + j + e] =
                    products[0];
            }
          } else {
            RANVIER_ROLLED
            for (int j = 0; j < n; ++j) {
              const A* numbers = tile[__shfl_sync(kAll, row_here, k * kSpan + j)];
              const A value = __shfl_sync(kAll, weight_here, k * kSpan + j);
              RANVIER_UNROLL
              for (int h = 0; h < kOf; ++h) sums[k][h] += value * numbers[h * kWarp + lane];
            }
          }
        }
        if (!more) break;
        from += kSpan;
      }
      from = to, to = next_to, next_to = next_next_to;
      __syncthreads();  // all have read the tile
    }
    if constexpr (!kDots) {
      RANVIER_UNROLL
      for (int k = 0; k < kPer; ++k) {
        RANVIER_UNROLL
        for (int h = 0; h < kOf; ++h) {
          const int32_t at = column + h * kWarp + lane;
          if (list0 + k < w.lists && at < z.c) z.out[(set * w.lists + list0 + k) * z.c + at] = sums[k][h];
        }
      }
    }
  }
}

constexpr int kPartThreads = 128;

// What all blocks of columns give to each entry, added in their order and put in its slot. A block a list.
template <class A>
static __global__ void __launch_bounds__(kPartThreads) add_parts(Tiled<A> w, const A* parts, A* out, int32_t n_parts) {
  const int64_t first = int64_t(blockIdx.x) * w.slots, step = w.sets * w.lists * w.slots;
  const int64_t set = blockIdx.x / w.lists, list = blockIdx.x % w.lists;
  const int32_t used = w.starts[(set * (w.tiles + 1) + w.tiles) * w.lists + list];
  for (int32_t s = threadIdx.x; s < w.slots; s += kPartThreads) out[first + s] = A(0);
  __syncthreads();
  for (int32_t k = threadIdx.x; k < used; k += kPartThreads) {
    A sum = A(0);
#pragma unroll 8
    for (int32_t part = 0; part < n_parts; ++part) sum += __ldg(parts + part * step + first + k);
    out[first + w.places[first + k]] = sum;
  }
}

constexpr int kSquare = 32, kSquareRows = 8;

// to[set, j, i] = from[set, i, j] for i < rows, j < columns.
template <class T>
static __global__ void __launch_bounds__(kSquare* kSquareRows)
    turn_round(const T* from, T* to, int64_t sets, int64_t rows, int64_t columns) {
  __shared__ T square[kSquare][kSquare + 1];
  const int x = threadIdx.x % kSquare, y = threadIdx.x / kSquare;
  const int64_t i0 = int64_t(blockIdx.y) * kSquare, j0 = int64_t(blockIdx.x) * kSquare;
  for (int64_t set = blockIdx.z; set < sets; set += gridDim.z) {
    const int64_t first = set * rows * columns;
    RANVIER_UNROLL
    for (int k = y; k < kSquare; k += kSquareRows)
      if (i0 + k < rows && j0 + x < columns) square[k][x] = from[first + (i0 + k) * columns + j0 + x];
    __syncthreads();
    RANVIER_UNROLL
    for (int k = y; k < kSquare; k += kSquareRows)
      if (j0 + k < columns && i0 + x < rows) to[first + (j0 + k) * rows + i0 + x] = square[x][k];
    __syncthreads();
  }
}

constexpr int kFewWarps = 8;

// Numbers one by one: a warp a number of the result.
template <class A, class M>
static __global__ void __launch_bounds__(kFewWarps* kWarp) gather_few(GatherCall<A, M> call) {
  const OpsSizes& z = call.size;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t list = blockIdx.x, set = z.p == 1 ? 0 : list / z.r;
  const int32_t given = __ldg(call.count + list), slots = int32_t(z.s);
  const int32_t used = given < 0 ? 0 : given < slots ? given : slots;
  for (int64_t column = int64_t(blockIdx.y) * kFewWarps + warp; column < z.c; column += gridDim.y * kFewWarps) {
    const M* numbers = call.matrix + (set * z.c + column) * z.n;
    A sum = A(0);
    for (int32_t s = lane; s < used; s += kWarp) {
      const int32_t id = __ldg(call.ids + list * z.s + s);
      if (id >= 0 && id < z.n) sum += __ldg(call.values + list * z.s + s) * number(numbers[id]);
    }
    sum = warp_sum(sum);
    if (lane == 0) call.out[list * z.c + column] = sum;
  }
}

// A lane an entry; the warps of a block share the columns.
template <class A, class M>
static __global__ void __launch_bounds__(kFewWarps* kWarp) dots_few(DotsCall<A, M> call) {
  __shared__ A parts[kFewWarps][kWarp];
  const OpsSizes& z = call.size;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t list = blockIdx.x, set = z.p == 1 ? 0 : list / z.r;
  const int32_t used = __ldg(call.count + list), slots = int32_t(z.s);
  const M* matrix = call.matrix + set * z.n * z.c;
  for (int32_t first = blockIdx.y * kWarp; first < slots; first += gridDim.y * kWarp) {
    const int32_t s = first + lane;
    const int32_t id = s < slots && s < used ? __ldg(call.ids + list * z.s + s) : -1;
    const bool good = id >= 0 && id < z.n;
    A sum = A(0);
    if (good)
      for (int64_t column = warp; column < z.c; column += kFewWarps)
        sum += number(matrix[column * z.n + id]) * __ldg(call.g + list * z.c + column);
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && s < slots) {
      A total = A(0);
      for (int k = 0; k < kFewWarps; ++k) total += parts[k][lane];
      call.out[list * z.s + s] = good ? total : A(0);
    }
    __syncthreads();
  }
}

}  // namespace ops
}  // namespace ranvier
