// The sparse operators for one instruction set: compiled once for each (RANVIER_NS names it), picked when loaded.
//
// Gather and scatter are one loop: a row of the result is a sum of weighted rows, kept in registers while all of them
// go by. For scatter the lists are turned round first, so that each row of the result finds its terms in order. So they
// are for dots where lists name a row more than once: it is then fetched once.
#include "ops_kernels.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "ops_vectors.h"

namespace ranvier {
namespace RANVIER_NS {
namespace {

// Registers that hold sums.
#if defined(__AVX512F__)
constexpr int kSums = 16;
#else
constexpr int kSums = 8;
#endif
template <int N>
struct Number {
  static constexpr int value = N;
};
// Products of rows that run side by side, to hide how long each addition takes.
constexpr int kSide = 8;

template <class A>
constexpr int kLanes = std::max<int>(kRegister / sizeof(A), 2);

// The used slots of list l.
template <class C>
int64_t used(const C& c, int64_t l) {
  return std::clamp<int64_t>(c.count[l], 0, c.size.s);
}

inline bool names_a_row(int32_t id, int64_t n) { return id >= 0 && id < n; }

inline bool all_name_rows(const int32_t* ids, int64_t size, int64_t n) {
  bool all = true;
  for (int64_t s = 0; s < size; ++s) all &= names_a_row(ids[s], n);
  return all;
}

// The first slot from `begin` on that names row `limit` or one behind it.
inline int64_t until(const int32_t* ids, int64_t begin, int64_t end, int64_t limit) {
  while (begin < end && ids[begin] < limit) ++begin;
  return begin;
}

template <class M>
const M* matrix_of(const M* matrix, const OpsSizes& size, int64_t list) {
  return size.p == 1 ? matrix : matrix + list / size.r * size.n * size.c;
}

// out[0 ... K N - 1] = (add ? out : 0) + sum over e < n of value[e] rows[row[e], 0 ... K N - 1].
template <class A, class M, int N, int K>
inline void sum_rows_here(const M* rows, int64_t stride, const int32_t* row, const A* value, int64_t n, A* out,
                          bool add) {
  typename Lanes<A, N>::type sums[K], x;
  RANVIER_UNROLLED
  for (int k = 0; k < K; ++k) sums[k] = typename Lanes<A, N>::type{};
  if (add) {
    RANVIER_UNROLLED
    for (int k = 0; k < K; ++k) load<A, N>(out + k * N, sums[k]);
  }
  for (int64_t e = 0; e < n; ++e) {
    const M* const at = rows + row[e] * stride;
    const A v = value[e];
    RANVIER_UNROLLED
    for (int k = 0; k < K; ++k) {
      load<A, N>(at + k * N, x);
      sums[k] += v * x;
    }
  }
  RANVIER_UNROLLED
  for (int k = 0; k < K; ++k) store<A, N>(out + k * N, sums[k]);
}

template <class A, class M>
void sum_rows(const M* rows, int64_t stride, const int32_t* row, const A* value, int64_t n, A* out, Range columns,
              bool add) {
  constexpr int lanes = kLanes<A>;
  int64_t c = columns.begin;
  const auto here = [&](auto size, auto registers) {
    constexpr int kN = decltype(size)::value, kK = decltype(registers)::value;
    for (; c + kN * kK <= columns.end; c += kN * kK)
      sum_rows_here<A, M, kN, kK>(rows + c, stride, row, value, n, out + c, add);
  };
  here(Number<lanes>{}, Number<kSums>{});
  here(Number<lanes>{}, Number<4>{});
  here(Number<lanes>{}, Number<1>{});
  here(Number<2>{}, Number<1>{});
  here(Number<1>{}, Number<1>{});
}

template <class A, class M>
void gather(const GatherCall<A, M>& c, const Tile& tile, Range columns, int32_t* place, int32_t* row, A* value) {
  const OpsSizes& z = c.size;
  const int64_t first = tile.lists.begin;
  std::fill(place, place + (tile.lists.end - first), 0);
  for (int64_t block = 0; block == 0 || block < z.n; block += tile.block) {
    const bool last = block + tile.block >= z.n;
    for (int64_t l = first; l < tile.lists.end; ++l) {
      const int32_t* ids = c.ids + l * z.s;
      const A* values = c.values + l * z.s;
      const int64_t begin = place[l - first];
      int64_t end = used(c, l);
      if (!last) end = until(ids, begin, end, block + tile.block);
      place[l - first] = static_cast<int32_t>(end);
      if (begin == end && block > 0) continue;
      int64_t n = end - begin;
      ids += begin, values += begin;
      if (!all_name_rows(ids, n, z.n)) {
        int64_t kept = 0;
        for (int64_t s = 0; s < n; ++s)
          if (names_a_row(ids[s], z.n)) row[kept] = ids[s], value[kept++] = values[s];
        ids = row, values = value, n = kept;
      }
      sum_rows(matrix_of(c.matrix, z, l), tile.stride, ids, values, n, c.out + l * z.c, columns, block > 0);
    }
  }
}

// Keeps kept(list, slot) of each used slot.
template <class X, class Kept>
void sort_by_row(const OpsSizes& z, const int32_t* ids, const int32_t* count, int64_t n_lists, const ByRow<X>& by,
                 Kept&& kept) {
  const auto each = [&](auto&& what) {
    for (int64_t k = 0; k < n_lists; ++k) {
      const int64_t l = by.first + k, n = std::clamp<int64_t>(count[l], 0, z.s);
      for (int64_t s = 0; s < n; ++s)
        if (const int32_t id = ids[l * z.s + s]; names_a_row(id, z.n)) what(id, k, s);
    }
  };
  // Counted two places ahead: the sums are then where a row's next slot goes, one place ahead of where it began.
  std::fill(by.start, by.start + z.n + 2, 0);
  each([&](int32_t id, int64_t, int64_t) { ++by.start[id + 2]; });
  for (int64_t i = 2; i < z.n + 2; ++i) by.start[i] += by.start[i - 1];
  each([&](int32_t id, int64_t k, int64_t s) {
    const int32_t at = by.start[id + 1]++;
    by.list[at] = static_cast<int32_t>(k), by.kept[at] = kept(by.first + k, s);
  });
}

template <class A>
void sort(const ScatterCall<A>& c, int64_t n_lists, const ByRow<A>& by) {
  sort_by_row(c.size, c.ids, c.count, n_lists, by, [&](int64_t l, int64_t s) { return c.values[l * c.size.s + s]; });
}

void sort_places(const OpsSizes& z, const int32_t* ids, const int32_t* count, int64_t n_lists,
                 const ByRow<int32_t>& by) {
  sort_by_row(z, ids, count, n_lists, by, [](int64_t, int64_t s) { return static_cast<int32_t>(s); });
}

template <class A>
void add(const ScatterCall<A>& c, Range rows, Range columns, const ByRow<A>& by, bool fresh, A* out, int64_t stride) {
  const OpsSizes& z = c.size;
  const A* const g = c.g + by.first * z.c + columns.begin;
  const Range all{0, columns.end - columns.begin};
  for (int64_t i = rows.begin; i < rows.end; ++i, out += stride) {
    const int32_t begin = by.start[i], n = by.start[i + 1] - begin;
    if (n > 0)
      sum_rows(g, z.c, by.list + begin, by.kept + begin, n, out, all, !fresh);
    else if (fresh)
      std::fill(out, out + all.end, A(0));
  }
}

// The sum of N numbers: the first half and the second, added, and so on.
template <class A, int N>
inline A total(const A* numbers) {
  if constexpr (N == 1) {
    return *numbers;
  } else {
    typename Lanes<A, N / 2>::type first, second;
    load<A, N / 2>(numbers, first);
    load<A, N / 2>(numbers + N / 2, second);
    first += second;
    A half[N / 2];
    store<A, N / 2>(half, first);
    return total<A, N / 2>(half);
  }
}

// Not inlined: where the compiler sees that halves of sums are read, it keeps the sums in memory all along.
template <class A, int N, int E>
__attribute__((noinline)) void add_totals(const A* numbers, A* sums) {
  for (int e = 0; e < E; ++e) sums[e] += total<A, N>(numbers + e * N);
}

// sums[e] += <rows[e], other> over columns c, c + N, ... as far as whole steps go; returns where they end.
template <class A, class X, class Y, int N, int E>
inline int64_t dots_here(const X* const* rows, const Y* other, int64_t c, int64_t end, A* sums) {
  if (c + N > end) return c;
  typename Lanes<A, N>::type part[E], x, y;
  RANVIER_UNROLLED
  for (int e = 0; e < E; ++e) part[e] = typename Lanes<A, N>::type{};
  for (; c + N <= end; c += N) {
    load<A, N>(other + c, y);
    RANVIER_UNROLLED
    for (int e = 0; e < E; ++e) {
      load<A, N>(rows[e] + c, x);
      part[e] += x * y;
    }
  }
  A numbers[E * N];
  RANVIER_UNROLLED
  for (int e = 0; e < E; ++e) store<A, N>(numbers + e * N, part[e]);
  add_totals<A, N, E>(numbers, sums);
  return c;
}

template <class A, class X, class Y, int E>
void dots_of(const X* const* rows, const Y* other, int64_t columns, A* sums) {
  int64_t c = dots_here<A, X, Y, kLanes<A>, E>(rows, other, 0, columns, sums);
  c = dots_here<A, X, Y, 2, E>(rows, other, c, columns, sums);
  if (c == columns) return;
  A x, y;
  load<A, 1>(other + c, y);
  for (int e = 0; e < E; ++e) {
    load<A, 1>(rows[e] + c, x);
    sums[e] += x * y;
  }
}

// to(e, <row(e), other>) for e < n. A sum has the same order whatever stands beside it.
template <class A, class X, class Y, class Row, class To>
void dots_of_all(int64_t n, const Y* other, int64_t columns, Row&& row, To&& to) {
  for (int64_t first = 0; first < n; first += kSide) {
    const int64_t left = std::min<int64_t>(n - first, kSide);
    const X* rows[kSide];
    A sums[kSide] = {};
    // where fewer are left, the last one more than once
    for (int64_t e = 0; e < kSide; ++e) rows[e] = row(first + std::min(e, left - 1));
    if (left > kSide / 2)
      dots_of<A, X, Y, kSide>(rows, other, columns, sums);
    else if (left > kSide / 4)
      dots_of<A, X, Y, kSide / 2>(rows, other, columns, sums);
    else
      dots_of<A, X, Y, kSide / 4>(rows, other, columns, sums);
    for (int64_t e = 0; e < left; ++e) to(first + e, sums[e]);
  }
}

template <class A, class M>
void dots(const DotsCall<A, M>& c, Range lists, int32_t* row, int32_t* slot) {
  const OpsSizes& z = c.size;
  for (int64_t l = lists.begin; l < lists.end; ++l) {
    const int32_t* const ids = c.ids + l * z.s;
    A* const out = c.out + l * z.s;
    std::fill(out, out + z.s, A(0));
    int64_t n = 0;
    for (int64_t s = 0, all = used(c, l); s < all; ++s)
      if (names_a_row(ids[s], z.n)) row[n] = ids[s], slot[n++] = static_cast<int32_t>(s);
    const M* const matrix = matrix_of(c.matrix, z, l);
    dots_of_all<A, M, A>(
        n, c.g + l * z.c, z.c, [&](int64_t e) { return matrix + row[e] * z.c; },
        [&](int64_t e, A sum) { out[slot[e]] = sum; });
  }
}

template <class A, class M>
void dots_by_row(const DotsCall<A, M>& c, const M* matrix, int64_t stride, Range rows, const ByRow<int32_t>& by) {
  const OpsSizes& z = c.size;
  const A* const g = c.g + by.first * z.c;
  A* const out = c.out + by.first * z.s;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int32_t *const list = by.list + by.start[i], *const slot = by.kept + by.start[i];
    dots_of_all<A, A, M>(
        by.start[i + 1] - by.start[i], matrix + (i - rows.begin) * stride, z.c,
        [&](int64_t e) { return g + list[e] * z.c; }, [&](int64_t e, A sum) { out[list[e] * z.s + slot[e]] = sum; });
  }
}

// low, high: numbers of a and b in turns, the first halves and the second ones.
template <class A, int N, int... K>
inline void interleave(const typename Lanes<A, N>::type& a, const typename Lanes<A, N>::type& b,
                       typename Lanes<A, N>::type& low, typename Lanes<A, N>::type& high,
                       std::integer_sequence<int, K...>) {
#if defined(__clang__)
  low = __builtin_shufflevector(a, b, (K % 2 * N + K / 2)...);
  high = __builtin_shufflevector(a, b, (K % 2 * N + K / 2 + N / 2)...);
#else
  using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  using Places = typename Lanes<Index, N>::type;
  low = __builtin_shuffle(a, b, Places{(K % 2 * N + K / 2)...});
  high = __builtin_shuffle(a, b, Places{(K % 2 * N + K / 2 + N / 2)...});
#endif
}

// N rows become N columns: rows k and k + N / 2 are shuffled like cards, over and over.
template <class A, class M, int N>
inline void turn_square(const M* from, int64_t from_stride, A* to, int64_t to_stride) {
  typename Lanes<A, N>::type x[N], y[N];
  RANVIER_UNROLLED
  for (int k = 0; k < N; ++k) load<A, N>(from + k * from_stride, x[k]);
  RANVIER_UNROLLED
  for (int n = 1; n < N; n *= 2) {
    RANVIER_UNROLLED
    for (int k = 0; k < N / 2; ++k)
      interleave<A, N>(x[k], x[k + N / 2], y[2 * k], y[2 * k + 1], std::make_integer_sequence<int, N>());
    RANVIER_UNROLLED
    for (int k = 0; k < N; ++k) x[k] = y[k];
  }
  RANVIER_UNROLLED
  for (int k = 0; k < N; ++k) store<A, N>(to + k * to_stride, x[k]);
}

template <class A, class M>
void turn(const M* from, int64_t from_stride, int64_t rows, int64_t columns, A* to, int64_t to_stride) {
  constexpr int kN = kLanes<A>;
  const int64_t whole_rows = rows / kN * kN, whole_columns = columns / kN * kN;
  // what the next squares read and write is asked for ahead: neither side is read as the processor expects it
  const auto square = [&](int64_t i, int64_t j, int64_t next_i, int64_t next_j) {
    RANVIER_UNROLLED
    for (int k = 0; k < kN; ++k) {
      __builtin_prefetch(from + (next_i + k) * from_stride + next_j);
      __builtin_prefetch(to + (next_j + k) * to_stride + next_i, 1);
    }
    turn_square<A, M, kN>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
  };
  if (rows < columns) {
    for (int64_t j = 0; j < whole_columns; j += kN)
      for (int64_t i = 0; i < whole_rows; i += kN) square(i, j, i, std::min(j + kN, whole_columns - kN));
  } else {
    for (int64_t i = 0; i < whole_rows; i += kN)
      for (int64_t j = 0; j < whole_columns; j += kN) square(i, j, std::min(i + kN, whole_rows - kN), j);
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      load<A, 1>(from + i * from_stride + j, to[j * to_stride + i]);
}

template <class A>
void spikes(const SpikesCall<A>& c, Range rows, int32_t* near) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const A* const state = c.state + r * c.n;
    const A* const upper = c.threshold + r * c.threshold_row;
    const A* const lower = c.near + r * c.near_row;
    int32_t* const ids = c.ids + r * c.s;
    int64_t fired = 0, nearly = 0;
    for (int64_t i = 0; i < c.n; ++i) {
      const A v = state[i];
      if (v > upper[i * c.threshold_neuron]) {
        if (fired < c.s) ids[fired] = static_cast<int32_t>(i);
        ++fired;
      } else if (v > lower[i * c.near_neuron] && v <= upper[i * c.threshold_neuron]) {
        if (nearly < c.s) near[nearly] = static_cast<int32_t>(i);
        ++nearly;
      }
    }
    const int64_t n_spikes = std::min(fired, c.s), n_near = std::min(nearly, c.s - n_spikes);
    std::copy(near, near + n_near, ids + n_spikes);
    std::fill(ids + n_spikes + n_near, ids + c.s, 0);
    c.n_spikes[r] = static_cast<int32_t>(n_spikes), c.n_near[r] = static_cast<int32_t>(n_near);
    c.n_lost[r] = static_cast<int32_t>(fired - n_spikes), c.n_near_dropped[r] = static_cast<int32_t>(nearly - n_near);
  }
}

}  // namespace

template <class A, class M>
OpsMatrixKernels<A, M> ops_matrix_kernels() {
  return {gather<A, M>, dots<A, M>, dots_by_row<A, M>, turn<A, M>};
}
template <class A>
OpsKernels<A> ops_kernels() {
  return {sort<A>, sort_places, add<A>, spikes<A>};
}

template OpsMatrixKernels<float, float> ops_matrix_kernels<float, float>();
template OpsMatrixKernels<float, Bf16> ops_matrix_kernels<float, Bf16>();
template OpsMatrixKernels<float, F16> ops_matrix_kernels<float, F16>();
template OpsMatrixKernels<double, double> ops_matrix_kernels<double, double>();
template OpsKernels<float> ops_kernels<float>();
template OpsKernels<double> ops_kernels<double>();

}  // namespace RANVIER_NS
}  // namespace ranvier
