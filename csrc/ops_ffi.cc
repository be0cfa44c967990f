// XLA FFI handlers of ranvier.ops on the CPU: check the call, cut it into pieces, run them on XLA's threads.
//
// The pieces' sizes depend on the number of threads, the results do not: a sum belongs to one piece, in one order.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops_binding.h"
#include "ops_cpu.h"
#include "parallel.h"

namespace ranvier {
namespace {

// Slots and rows that a scatter sorts at a time.
constexpr int64_t kSorted = int64_t(1) << 22;
// Rows that are turned together fill registers; columns are worth a walk through the lists, too.
constexpr int64_t kTurnedRows = 16, kTurnedColumns = 64;
// Numbers between rows that are turned, so that those of a power of two do not meet in one place of the cache.
constexpr int64_t kTurnedGap = 16;

template <class A>
const OpsKernels<A>& kernels() {
  static const auto best = pick([](int level) {
    (void)level;
#if defined(RANVIER_X86)
    if (level == 4) return v4::ops_kernels<A>();
    if (level == 3) return v3::ops_kernels<A>();
#endif
    return base::ops_kernels<A>();
  });
  return best;
}

// What the memory of a thread is for.
enum Purpose { kPlace, kRow, kSlot, kValue, kStart, kList, kKept, kTurned };

int64_t used(const int32_t* count, Range lists, int64_t slots) {
  int64_t sum = 0;
  for (int64_t l = lists.begin; l < lists.end; ++l) sum += std::clamp<int64_t>(count[l], 0, slots);
  return sum;
}

// How a gather is cut. Blocks of rows pay where the lists of a tile name each row more than once and a list several
// rows of a block, and the matrix is too large for the cache nearby; then tiles are large. Columns are cut where there
// are fewer lists than threads.
struct Tiles {
  Cut lists, columns;
  int64_t block;
};

Tiles tiles(int64_t threads, const OpsSizes& z, const int32_t* count, int64_t row_bytes) {
  const int64_t all = z.q * z.r, block = kOpsCache / std::max<int64_t>(row_bytes, 1);
  const Cut large(all, std::max(threads, ceiling(all, kOpsTile)));
  bool pays = z.p == 1 && z.n * row_bytes > 2 * kOpsCache;
  if (pays) {
    const int64_t slots = used(count, {0, all}, z.s);
    pays = slots >= 2 * large.pieces * z.n && slots * block >= 4 * all * z.n;
  }
  const Cut lists = pays ? large : Cut(all, kPieces * threads);
  return {lists,
          {z.c, std::min(ceiling(threads, lists.pieces), z.c / kOpsColumns)},
          pays ? block : std::max<int64_t>(z.n, 1)};
}

template <class A, class M>
ffi::Error gather(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  GatherCall<A, M> c{};
  if (auto wrong = bind_gather(c, attributes, arguments, results); wrong.failure()) return wrong;
  const Tiles cut = tiles(pool.num_threads(), c.size, c.count, c.size.c * int64_t(sizeof(M)));
  parallel_for(pool, cut.columns.pieces * cut.lists.pieces, [&](int64_t k) {
    const Tile tile{cut.lists[k % cut.lists.pieces], cut.block, c.size.c};
    int32_t* const place = scratch<int32_t, kPlace>(tile.lists.end - tile.lists.begin);
    matrix_kernels<A, M>().gather(c, tile, cut.columns[k / cut.lists.pieces], place, scratch<int32_t, kRow>(c.size.s),
                                  scratch<A, kValue>(c.size.s));
  });
  return ffi::Error::Success();
}

// A matrix (C, N) or a result that is one is turned piece by piece, in memory of a thread that stays in its cache. How
// `size` rows with `length` numbers are cut: in pieces of at least `least`, which is a multiple of what fills
// registers.
Cut turned(int64_t threads, int64_t size, int64_t length, int64_t bytes, int64_t least) {
  const int64_t fit = kOpsCache / 2 / std::max<int64_t>(length * bytes, 1) / least * least;
  const int64_t fair = ceiling(ceiling(size, kPieces * threads), least) * least;
  return Cut(size, ceiling(size, std::clamp(fair, least, std::max(fit, least))));
}

template <class A, class M>
ffi::Error gather_turned(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results) {
  GatherCall<A, M> c{};
  if (auto wrong = bind_gather(c, attributes, arguments, results, true); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  const int64_t lists = z.p == 1 ? z.q * z.r : z.r;
  const Cut columns = turned(pool.num_threads(), z.c, z.n, sizeof(A), kTurnedColumns);
  parallel_for(pool, z.p * columns.pieces, [&](int64_t k) {
    const int64_t p = k / columns.pieces;
    const Range some = columns[k % columns.pieces];
    const int64_t width = some.end - some.begin;
    A* const matrix = scratch<A, kTurned>(z.n * width);
    matrix_kernels<A, M>().turn(c.matrix + (p * z.c + some.begin) * z.n, z.n, width, z.n, matrix, width);
    const GatherCall<A, A> part{{1, 0, z.s, 1, z.n, z.c}, c.values, c.ids, c.count, matrix, c.out + some.begin};
    int32_t* const place = scratch<int32_t, kPlace>(lists);
    matrix_kernels<A, A>().gather(part, {{p * lists, (p + 1) * lists}, std::max<int64_t>(z.n, 1), width}, {0, width},
                                  place, scratch<int32_t, kRow>(z.s), scratch<A, kValue>(z.s));
  });
  return ffi::Error::Success();
}

// The lists of each matrix in blocks, in order, at least one a matrix. Some blocks at a time are sorted by row, each by
// one thread: sort(n_lists, by). Then comes work(first_set, sets, blocks_of), with those sets that have blocks among
// them; blocks_of(p, each) calls each(by, whether this is the set's first block) for those of set p, in order.
class Blocks {
 public:
  Blocks(const OpsSizes& z, const int32_t* count, int64_t most)
      : z_(z),
        count_(count),
        most_(most),
        per_set_(z.p == 1 ? z.q * z.r : z.r),
        blocks_per_set_(std::max<int64_t>(1, ceiling(per_set_, most))) {}

  int64_t size() const { return z_.p * blocks_per_set_; }

  template <class X, class Sort, class Work>
  void run(ffi::ThreadPool& pool, Sort&& sort, Work&& work) const {
    const int64_t blocks = size();
    std::vector<ByRow<X>> sorted;
    for (int64_t first = 0, stop; first < blocks; first = stop) {
      int64_t slots = 0;
      std::vector<int64_t> before;
      for (stop = first; stop < blocks && (stop == first || slots + (stop - first) * z_.n < kSorted); ++stop) {
        before.push_back(slots);
        slots += used(count_, lists(stop), z_.s);
      }
      int32_t* const start = scratch<int32_t, kStart>((stop - first) * (z_.n + 2));
      int32_t* const list = scratch<int32_t, kList>(slots);
      X* const kept = scratch<X, kKept>(slots);
      sorted.resize(stop - first);
      parallel_for(pool, stop - first, [&](int64_t k) {
        const Range mine = lists(first + k);
        sorted[k] = {mine.begin, start + k * (z_.n + 2), list + before[k], kept + before[k]};
        sort(mine.end - mine.begin, sorted[k]);
      });
      const int64_t first_set = first / blocks_per_set_, sets = (stop - 1) / blocks_per_set_ + 1 - first_set;
      work(first_set, sets, [&](int64_t p, auto&& each) {
        const int64_t begin = std::max(first, p * blocks_per_set_), end = std::min(stop, (p + 1) * blocks_per_set_);
        for (int64_t block = begin; block < end; ++block) each(sorted[block - first], block == p * blocks_per_set_);
      });
    }
  }

 private:
  Range lists(int64_t block) const {
    const int64_t begin = block % blocks_per_set_ * most_, first = block / blocks_per_set_ * per_set_;
    return {first + begin, first + std::min(begin + most_, per_set_)};
  }

  OpsSizes z_;
  const int32_t* count_;
  int64_t most_, per_set_, blocks_per_set_;
};

// Lists whose rows of g stay in the cache nearby.
int64_t lists_together(const OpsSizes& z, int64_t bytes) {
  return std::clamp<int64_t>(kOpsCache / std::max<int64_t>(z.c * bytes, 1), 1, kOpsLists);
}

template <class A, class M>
ffi::Error dots(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                ffi::RemainingRets results) {
  DotsCall<A, M> c{};
  if (auto wrong = bind_dots(c, attributes, arguments, results); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  const int64_t all = z.q * z.r, threads = pool.num_threads();
  const Blocks blocks(z, c.count, lists_together(z, sizeof(A)));
  // A row is fetched once for all lists of a block: worth it where that many name it.
  if (used(c.count, {0, all}, z.s) < 2 * z.n * blocks.size()) {
    const Cut lists(all, kPieces * threads);
    parallel_for(pool, lists.pieces, [&](int64_t k) {
      matrix_kernels<A, M>().dots(c, lists[k], scratch<int32_t, kRow>(z.s), scratch<int32_t, kSlot>(z.s));
    });
    return ffi::Error::Success();
  }
  std::fill(c.out, c.out + all * z.s, A(0));
  const auto sort = [&](int64_t n_lists, const ByRow<int32_t>& by) {
    kernels<A>().sort_places(z, c.ids, c.count, n_lists, by);
  };
  blocks.run<int32_t>(pool, sort, [&](int64_t first_set, int64_t sets, auto&& blocks_of) {
    const Cut rows(z.n, ceiling(kPieces * threads, sets));
    parallel_for(pool, sets * rows.pieces, [&](int64_t k) {
      const int64_t p = first_set + k / rows.pieces;
      const Range some = rows[k % rows.pieces];
      blocks_of(p, [&](const ByRow<int32_t>& by, bool) {
        matrix_kernels<A, M>().dots_by_row(c, c.matrix + (p * z.n + some.begin) * z.c, z.c, some, by);
      });
    });
  });
  return ffi::Error::Success();
}

template <class A, class M>
ffi::Error dots_turned(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                       ffi::RemainingRets results) {
  DotsCall<A, M> c{};
  if (auto wrong = bind_dots(c, attributes, arguments, results, true); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  const int64_t stride = z.c + kTurnedGap;
  const DotsCall<A, A> of_turned{z, c.ids, c.count, nullptr, c.g, c.out};
  std::fill(c.out, c.out + z.q * z.r * z.s, A(0));
  const Blocks blocks(z, c.count, lists_together(z, sizeof(A)));
  const auto sort = [&](int64_t n_lists, const ByRow<int32_t>& by) {
    kernels<A>().sort_places(z, c.ids, c.count, n_lists, by);
  };
  const Cut rows = turned(pool.num_threads(), z.n, z.c, sizeof(A), kTurnedRows);
  blocks.run<int32_t>(pool, sort, [&](int64_t first_set, int64_t sets, auto&& blocks_of) {
    parallel_for(pool, sets * rows.pieces, [&](int64_t k) {
      const int64_t p = first_set + k / rows.pieces;
      const Range some = rows[k % rows.pieces];
      A* const matrix = scratch<A, kTurned>((some.end - some.begin) * stride);
      matrix_kernels<A, M>().turn(c.matrix + p * z.n * z.c + some.begin, z.n, z.c, some.end - some.begin, matrix,
                                  stride);
      blocks_of(p, [&](const ByRow<int32_t>& by, bool) {
        matrix_kernels<A, A>().dots_by_row(of_turned, matrix, stride, some, by);
      });
    });
  });
  return ffi::Error::Success();
}

template <class A>
ffi::Error scatter(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  ScatterCall<A> c{};
  if (auto wrong = bind_scatter(c, attributes, arguments, results); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  expect_all_of(c.out, z.p * z.n * z.c * int64_t(sizeof(A)));
  const int64_t per_set = z.p == 1 ? z.q * z.r : z.r;
  const int64_t together = std::min(per_set, kOpsLists) * z.c * int64_t(sizeof(A));
  const Cut columns(z.c, std::min(ceiling(together, kOpsCache), z.c / kOpsColumns));
  const auto sort = [&](int64_t n_lists, const ByRow<A>& by) { kernels<A>().sort(c, n_lists, by); };
  const Blocks blocks(z, c.count, kOpsLists);
  blocks.template run<A>(pool, sort, [&](int64_t first_set, int64_t sets, auto&& blocks_of) {
    const Cut rows(z.n, ceiling(kPieces * pool.num_threads(), sets * columns.pieces));
    parallel_for(pool, sets * columns.pieces * rows.pieces, [&](int64_t k) {
      const int64_t p = first_set + k / rows.pieces / columns.pieces;
      const Range some = columns[k / rows.pieces % columns.pieces];
      const Range here = rows[k % rows.pieces];
      A* const out = c.out + (p * z.n + here.begin) * z.c + some.begin;
      // a matrix's first block writes also the rows that no list names
      blocks_of(p, [&](const ByRow<A>& by, bool first) { kernels<A>().add(c, here, some, by, first, out, z.c); });
    });
  });
  return ffi::Error::Success();
}

template <class A>
ffi::Error scatter_turned(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                          ffi::RemainingRets results) {
  ScatterCall<A> c{};
  if (auto wrong = bind_scatter(c, attributes, arguments, results, true); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  expect_all_of(c.out, z.p * z.n * z.c * int64_t(sizeof(A)));
  const auto sort = [&](int64_t n_lists, const ByRow<A>& by) { kernels<A>().sort(c, n_lists, by); };
  const Blocks blocks(z, c.count, kOpsLists);
  const Cut rows = turned(pool.num_threads(), z.n, z.c, sizeof(A), kTurnedRows);
  const int64_t stride = z.c + kTurnedGap;
  blocks.template run<A>(pool, sort, [&](int64_t first_set, int64_t sets, auto&& blocks_of) {
    parallel_for(pool, sets * rows.pieces, [&](int64_t k) {
      const int64_t p = first_set + k / rows.pieces;
      const Range here = rows[k % rows.pieces];
      const int64_t height = here.end - here.begin;
      A* const to = c.out + p * z.n * z.c + here.begin;
      A* const sums = scratch<A, kTurned>(height * stride);
      bool begun = false;
      blocks_of(p, [&](const ByRow<A>& by, bool first) {
        // what lists that were sorted before have given
        if (!begun && !first) matrix_kernels<A, A>().turn(to, z.n, z.c, height, sums, stride);
        begun = true;
        kernels<A>().add(c, here, {0, z.c}, by, first, sums, stride);
      });
      matrix_kernels<A, A>().turn(sums, stride, height, z.c, to, z.n);
    });
  });
  return ffi::Error::Success();
}

template <class A>
ffi::Error spikes(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  SpikesCall<A> c{};
  if (auto wrong = bind_spikes(c, attributes, arguments, results); wrong.failure()) return wrong;
  const Cut rows(c.r, kPieces * pool.num_threads());
  parallel_for(pool, rows.pieces,
               [&](int64_t k) { kernels<A>().spikes(c, rows[k], scratch<int32_t, kRow>(std::min(c.n, c.s))); });
  return ffi::Error::Success();
}

// To the nearest number of 16 bits, of two to the even one.
void write(float x, Bf16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // a number that is none stays one, whatever bits it loses
  to->bits = static_cast<uint16_t>(x != x ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <class A>
void write(A x, A* to) {
  *to = x;
}

template <class A, class O>
ffi::Error densify(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  DensifyCall<A, O> c{};
  if (auto wrong = bind_densify(c, attributes, arguments, results); wrong.failure()) return wrong;
  const OpsSizes& z = c.size;
  expect_all_of(c.out, z.q * z.r * z.n * int64_t(sizeof(O)));
  const Cut lists(z.q * z.r, kPieces * pool.num_threads());
  parallel_for(pool, lists.pieces, [&](int64_t k) {
    // what a list's entries add up to, and zeros where it has none
    A* const sums = scratch<A, kValue>(z.n);
    std::fill(sums, sums + z.n, A(0));
    std::memset(c.out + lists[k].begin * z.n, 0, (lists[k].end - lists[k].begin) * z.n * sizeof(O));
    for (int64_t l = lists[k].begin; l < lists[k].end; ++l) {
      const int32_t* const ids = c.ids + l * z.s;
      const int64_t n = std::clamp<int64_t>(c.count[l], 0, z.s);
      const auto each = [&](auto&& what) {
        for (int64_t s = 0; s < n; ++s)
          if (ids[s] >= 0 && ids[s] < z.n) what(ids[s], s);
      };
      each([&](int32_t i, int64_t s) { sums[i] += c.values[l * z.s + s]; });
      each([&](int32_t i, int64_t) { write(sums[i], c.out + l * z.n + i); });
      each([&](int32_t i, int64_t) { sums[i] = A(0); });
    }
  });
  return ffi::Error::Success();
}

auto binding() { return signature(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()); }

}  // namespace
}  // namespace ranvier

RANVIER_OPS_HANDLERS
RANVIER_TURNED_HANDLERS
RANVIER_DENSIFY_HANDLERS
