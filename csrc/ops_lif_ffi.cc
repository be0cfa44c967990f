// XLA FFI handlers of the LIF layer over time on the CPU: check the call, cut it into pieces, run them on XLA's
// threads.
//
// A piece is some samples of a group, which go through time together: their rows of a step lie side by side, and a row
// of recurrent weights that several of them need is in the cache. Where there are fewer samples than threads and no
// recurrent weights, neurons are cut instead. The results do not depend on the cut.
#include <limits>

#include "ops_cpu.h"
#include "ops_lif_binding.h"
#include "ops_lif_kernels.h"
#include "parallel.h"

namespace ranvier {
namespace {

// Bytes of voltages that a piece's samples have together, as far as there are more samples: they stay in the cache.
constexpr int64_t kTogether = int64_t(1) << 16;
// Neurons that are worth a piece of their own.
constexpr int64_t kNeurons = 1024;
// Steps between two meetings of the threads where neurons are cut.
constexpr int64_t kSteps = 16;

template <class A>
const LifLoopKernels<A>& loop_kernels() {
  static const auto best = pick([](int level) {
    (void)level;
#if defined(RANVIER_X86)
    if (level == 4) return v4::lif_loop_kernels<A>();
    if (level == 3) return v3::lif_loop_kernels<A>();
#endif
    return base::lif_loop_kernels<A>();
  });
  return best;
}

// What the memory of a thread is for.
enum Purpose { kParameters, kState, kSums, kOnes, kNearWords, kFiredWords, kIds, kPlace, kRow, kSlot, kValue };

int64_t padded(int64_t n) { return words_of(n) * kWord; }

// The parameters of group q, in memory for kLifRows padded rows.
template <class A>
LifParameters<A> padded_parameters(const A* parameters, int64_t q, int64_t n, A* to) {
  constexpr A never = std::numeric_limits<A>::infinity();
  const int64_t row = padded(n);
  for (int64_t k = 0; k < kLifRows; ++k) {
    const A* const from = parameters + (q * kLifRows + k) * n;
    std::fill(std::copy(from, from + n, to + k * row), to + (k + 1) * row,
              k == kThreshold || k == kNear ? never : A(0));
  }
  return {to + kDecay * row, to + kScale * row, to + kThreshold * row, to + kNear * row};
}

template <class A>
void pad(const A* from, int64_t n, A* to) {
  std::fill(std::copy(from, from + n, to), to + padded(n), A(0));
}

// The pieces of a call: some samples of a group each, and a part of the neurons' words.
class Pieces {
 public:
  Pieces(const LifLoopSizes& z, int64_t threads, int64_t bytes, bool cut_neurons)
      : q_(z.q),
        samples_(z.r, ceiling(z.r, together(z, threads, bytes))),
        words_(words_of(z.n), cut_neurons ? std::min(ceiling(threads, z.q * z.r), z.n / kNeurons) : 1) {}

  int64_t size() const { return q_ * samples_.pieces * words_.pieces; }
  int64_t group(int64_t k) const { return k / words_.pieces / samples_.pieces; }
  Range samples(int64_t k) const { return samples_[k / words_.pieces % samples_.pieces]; }
  LifWords words(int64_t k) const { return {words_[k % words_.pieces].begin, words_[k % words_.pieces].end}; }

 private:
  static int64_t together(const LifLoopSizes& z, int64_t threads, int64_t bytes) {
    // recurrent weights are read for all samples of a piece, which should then be many
    const int64_t share = ceiling(z.q * z.r, threads);
    const int64_t most = z.recurrent ? kOpsTile : kTogether / std::max<int64_t>(padded(z.n) * bytes, 1);
    return std::clamp<int64_t>(share, 1, std::max<int64_t>(most, 1));
  }

  int64_t q_;
  Cut samples_, words_;
};

template <class A>
LifList<A> list_of(const LifForwardCall<A>& c, int64_t row) {
  return {c.ids + row * c.size.s, c.excess + row * c.size.s, c.n_spikes + row, c.n_near + row,
          c.n_lost + row,         c.n_near_dropped + row};
}

// Adds the neurons of a step's window that did not fire to those that nearly did: a near threshold of -inf, which a
// voltage that is no number does not pass.
template <class A>
void add_window(const int32_t* window, int64_t n, const A* v, const uint32_t* fired, uint32_t* near) {
  const int64_t length = std::min<int64_t>(window[1], n);
  int64_t i = std::clamp<int64_t>(window[0], 0, n - 1);
  for (int64_t k = 0; k < length; ++k, i = i + 1 == n ? 0 : i + 1)
    if (v[i] > -std::numeric_limits<A>::infinity()) near[i / kWord] |= 1u << i % kWord & ~fired[i / kWord];
}

// sums[r, :] = what the spikes of some samples send through the weights of their group.
template <class A>
void recurrent_currents(const LifForwardCall<A>& c, int64_t q, Range samples, const A* values, const int32_t* ids,
                        const int32_t* count, A* sums) {
  const int64_t lists = samples.end - samples.begin, s = c.size.s, n = c.size.n;
  const GatherCall<A, A> call{{1, lists, s, 1, n, n}, values, ids, count, c.w_rec + q * n * n, sums};
  matrix_kernels<A, A>().gather(call, {{0, lists}, n, n}, {0, n}, scratch<int32_t, kPlace>(lists),
                                scratch<int32_t, kRow>(s), scratch<A, kValue>(s));
}

// Some samples of group q through all steps.
template <class A>
void walk(const LifForwardCall<A>& c, int64_t q, Range samples) {
  const LifLoopSizes& z = c.size;
  const int64_t lists = samples.end - samples.begin, row = padded(z.n), n_words = words_of(z.n);
  const auto of = padded_parameters(c.parameters, q, z.n, scratch<A, kParameters>(kLifRows * row));
  A* const v = scratch<A, kState>(lists * row);
  A* const sums = z.recurrent ? scratch<A, kSums>(lists * z.n) : nullptr;
  A* const ones = z.recurrent ? scratch<A, kOnes>(lists * z.s) : nullptr;
  uint32_t* const near = scratch<uint32_t, kNearWords>(n_words);
  int32_t* const room = scratch<int32_t, kIds>(row + 16);
  if (ones) std::fill(ones, ones + lists * z.s, A(1));
  const int64_t first = q * z.r + samples.begin;
  for (int64_t l = 0; l < lists; ++l) pad(c.v0 + (first + l) * z.n, z.n, v + l * row);
  for (int64_t t = 0; t < z.t; ++t) {
    const int64_t at = (q * z.t + t) * z.r + samples.begin, before = at - z.r;
    if (z.recurrent && t == 0)
      recurrent_currents(c, q, samples, c.values0 + first * z.s, c.ids0 + first * z.s, c.n_spikes0 + first, sums);
    else if (z.recurrent)
      recurrent_currents<A>(c, q, samples, ones, c.ids + before * z.s, c.n_spikes + before, sums);
    for (int64_t l = 0; l < lists; ++l) {
      A* const mine = v + l * row;
      uint32_t* const fired = c.fired + (at + l) * n_words;
      loop_kernels<A>().charge(of, {0, n_words}, z.n, c.currents + (at + l) * z.n, sums ? sums + l * z.n : nullptr,
                               mine, mine, fired, near);
      if (c.window) add_window(c.window + 2 * (at + l), z.n, mine, fired, near);
      loop_kernels<A>().list(of, n_words, z.s, fired, near, mine, room, list_of(c, at + l));
    }
  }
  for (int64_t l = 0; l < lists; ++l) std::copy(v + l * row, v + l * row + z.n, c.v_last + (first + l) * z.n);
}

// All samples, some steps at a time: first their voltages, by parts of the neurons, then their lists.
template <class A>
void walk_by_neurons(ffi::ThreadPool& pool, const LifForwardCall<A>& c, const Pieces& pieces) {
  const LifLoopSizes& z = c.size;
  const int64_t all = z.q * z.r, row = padded(z.n), n_words = words_of(z.n);
  A* const parameters = scratch<A, kParameters>(z.q * kLifRows * row);
  A* const v = scratch<A, kState>(all * kSteps * row);  // of each sample the last kSteps steps
  uint32_t* const near = scratch<uint32_t, kNearWords>(all * kSteps * n_words);
  std::vector<LifParameters<A>> of;
  for (int64_t q = 0; q < z.q; ++q)
    of.push_back(padded_parameters(c.parameters, q, z.n, parameters + q * kLifRows * row));
  const auto place = [](int64_t sample, int64_t t) { return sample * kSteps + (t + kSteps) % kSteps; };
  for (int64_t l = 0; l < all; ++l) pad(c.v0 + l * z.n, z.n, v + place(l, -1) * row);
  const auto at = [&](int64_t sample, int64_t t) { return (sample / z.r * z.t + t) * z.r + sample % z.r; };
  for (int64_t begin = 0; begin < z.t; begin += kSteps) {
    const int64_t end = std::min(begin + kSteps, z.t);
    parallel_for(pool, pieces.size(), [&](int64_t k) {
      const int64_t q = pieces.group(k);
      const Range samples = pieces.samples(k);
      for (int64_t l = q * z.r + samples.begin; l < q * z.r + samples.end; ++l)
        for (int64_t t = begin; t < end; ++t)
          loop_kernels<A>().charge(of[q], pieces.words(k), z.n, c.currents + at(l, t) * z.n, nullptr,
                                   v + place(l, t - 1) * row, v + place(l, t) * row, c.fired + at(l, t) * n_words,
                                   near + place(l, t) * n_words);
    });
    parallel_for(pool, all * (end - begin), [&](int64_t k) {
      const int64_t l = k % all, t = begin + k / all;
      uint32_t* const nearly = near + place(l, t) * n_words;
      if (c.window)
        add_window(c.window + 2 * at(l, t), z.n, v + place(l, t) * row, c.fired + at(l, t) * n_words, nearly);
      loop_kernels<A>().list(of[l / z.r], n_words, z.s, c.fired + at(l, t) * n_words, nearly, v + place(l, t) * row,
                             scratch<int32_t, kIds>(row + 16), list_of(c, at(l, t)));
    });
  }
  for (int64_t l = 0; l < all; ++l) {
    const A* const last = v + place(l, z.t - 1) * row;
    std::copy(last, last + z.n, c.v_last + l * z.n);
  }
}

template <class A, bool kSampled = false>
ffi::Error lif_forward(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                       ffi::RemainingRets results) {
  LifForwardCall<A> c{};
  if (auto wrong = bind_lif_forward(c, attributes, arguments, results, kSampled); wrong.failure()) return wrong;
  const LifLoopSizes& z = c.size;
  expect_all_of(c.ids, z.q * z.t * z.r * z.s * int64_t(sizeof(int32_t)));
  expect_all_of(c.excess, z.q * z.t * z.r * z.s * int64_t(sizeof(A)));
  const int64_t threads = pool.num_threads();
  const bool cut_neurons = !z.recurrent && z.q * z.r < threads && z.n >= 2 * kNeurons;
  const Pieces pieces(z, threads, sizeof(A), cut_neurons);
  if (cut_neurons)
    walk_by_neurons(pool, c, pieces);
  else
    parallel_for(pool, pieces.size(), [&](int64_t k) { walk(c, pieces.group(k), pieces.samples(k)); });
  return ffi::Error::Success();
}

template <class A>
constexpr auto lif_forward_sampled = lif_forward<A, true>;

// out[r, s] = <row ids[s] of the weights, what sample r sent back>.
template <class A>
void recurrent_products(const LifBackwardCall<A>& c, int64_t q, Range samples, const int32_t* ids, const int32_t* count,
                        const A* d_current, A* out) {
  const int64_t lists = samples.end - samples.begin, s = c.size.s, n = c.size.n;
  const DotsCall<A, A> call{{1, lists, s, 1, n, n}, ids, count, c.w_rec + q * n * n, d_current, out};
  matrix_kernels<A, A>().dots(call, {0, lists}, scratch<int32_t, kRow>(s), scratch<int32_t, kSlot>(s));
}

// Cotangents of the entries of a list, of which those of some neurons are added to `lam`. Where `e` has them already,
// they are what came through recurrent weights.
template <class A>
void enter(const LifBackwardCall<A>& c, int64_t row, bool came, bool whole, LifWords words, A* lam) {
  const LifLoopSizes& z = c.size;
  const int32_t* const ids = c.ids + row * z.s;
  const A *const ct = c.ct_excess + row * z.s, *const factor = c.factor + row * z.s;
  A* const e = c.d_excess + row * z.s;
  const int64_t listed = std::clamp<int64_t>(c.n_listed[row], 0, z.s);
  const int64_t begin = words.begin * kWord, end = std::min(words.end * kWord, z.n);
  for (int64_t s = 0; s < listed; ++s) {
    const int32_t id = ids[s];
    const A sum = came ? ct[s] + factor[s] * e[s] : ct[s];
    if (id >= begin && id < end) lam[id] += sum;
    if (whole) e[s] = id >= 0 && id < z.n ? sum : A(0);
  }
  if (whole) std::fill(e + listed, e + z.s, A(0));
}

// Some neurons of some samples of group q, back through all steps. Without recurrent weights a list is read by all that
// have neurons of it, and its cotangents are written by the one that has the first.
template <class A>
void walk_back(const LifBackwardCall<A>& c, int64_t q, Range samples, LifWords words) {
  const LifLoopSizes& z = c.size;
  const int64_t lists = samples.end - samples.begin, row = padded(z.n), n_words = words_of(z.n);
  const auto of = padded_parameters(c.parameters, q, z.n, scratch<A, kParameters>(kLifRows * row));
  A* const lam = scratch<A, kState>(lists * row);
  uint32_t* const fired0 = scratch<uint32_t, kFiredWords>(lists * n_words);
  const int64_t first = q * z.r + samples.begin;
  std::fill(fired0, fired0 + lists * n_words, 0);
  for (int64_t l = 0; l < lists; ++l) {
    const A* const v0 = c.v0 + (first + l) * z.n;
    for (int64_t i = 0; i < z.n; ++i) fired0[l * n_words + i / kWord] |= uint32_t(v0[i] > of.threshold[i]) << i % kWord;
    pad(c.ct_v_last + (first + l) * z.n, z.n, lam + l * row);
  }
  for (int64_t t = z.t - 1; t >= 0; --t) {
    const int64_t at = (q * z.t + t) * z.r + samples.begin, before = at - z.r, after = at + z.r;
    const bool came = z.recurrent && t + 1 < z.t;
    if (came)
      recurrent_products(c, q, samples, c.ids + at * z.s, c.n_listed + at, c.d_currents + after * z.n,
                         c.d_excess + at * z.s);
    for (int64_t l = 0; l < lists; ++l) {
      const uint32_t* const fired = t ? c.fired + (before + l) * n_words : fired0 + l * n_words;
      enter(c, at + l, came, words.begin == 0, words, lam + l * row);
      loop_kernels<A>().pass_back(of, words, z.n, fired, lam + l * row, c.d_currents + (at + l) * z.n);
    }
  }
  const int64_t begin = words.begin * kWord, end = std::min(words.end * kWord, z.n);
  for (int64_t l = 0; l < lists; ++l)
    std::copy(lam + l * row + begin, lam + l * row + end, c.d_v0 + (first + l) * z.n + begin);
  if (z.recurrent)
    recurrent_products(c, q, samples, c.ids0 + first * z.s, c.n_listed0 + first,
                       c.d_currents + (q * z.t * z.r + samples.begin) * z.n, c.d_values0 + first * z.s);
  else if (words.begin == 0)
    std::fill(c.d_values0 + first * z.s, c.d_values0 + (first + lists) * z.s, A(0));
}

template <class A>
ffi::Error lif_backward(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results) {
  LifBackwardCall<A> c{};
  if (auto wrong = bind_lif_backward(c, attributes, arguments, results); wrong.failure()) return wrong;
  const LifLoopSizes& z = c.size;
  expect_all_of(c.d_currents, z.q * z.t * z.r * z.n * int64_t(sizeof(A)));
  expect_all_of(c.d_excess, z.q * z.t * z.r * z.s * int64_t(sizeof(A)));
  const int64_t threads = pool.num_threads();
  const Pieces pieces(z, threads, sizeof(A), !z.recurrent && z.q * z.r < threads && z.n >= 2 * kNeurons);
  parallel_for(pool, pieces.size(),
               [&](int64_t k) { walk_back(c, pieces.group(k), pieces.samples(k), pieces.words(k)); });
  return ffi::Error::Success();
}

auto binding() { return signature(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()); }

}  // namespace
}  // namespace ranvier

RANVIER_OPS_LIF_HANDLERS
