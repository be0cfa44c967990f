// A step of a LIF layer for one instruction set: compiled once for each (RANVIER_NS names it), picked when loaded.
#include "ops_lif_kernels.h"

#include <algorithm>
#include <array>

#include "ops_vectors.h"
#include "words.h"

namespace ranvier {
namespace RANVIER_NS {
namespace {

// kWord numbers from `x` on, of which a row may have fewer: those are copied, with zeros behind them.
template <class A>
struct Padded {
  A room[kWord];
  const A* of(const A* x, int64_t left) {
    if (left >= kWord) return x;
    std::fill(std::copy(x, x + left, room), room + kWord, A(0));
    return room;
  }
};

// Asks for a word's numbers of the row behind this one, which is the next sample's: soon to be read, or written.
template <bool kWritten, class A>
inline void ask_for(const A* x) {
  for (int l = 0; l < kWord; l += 64 / sizeof(A)) __builtin_prefetch(x + l, kWritten);
}

template <class A, bool kArrived>
void charge_(const LifParameters<A>& of, LifWords words, int64_t n, const A* current, const A* arrived, const A* before,
             A* v, uint32_t* fired, uint32_t* near) {
  constexpr int kLanes = kRegister / sizeof(A);
  typedef typename Lanes<A, kLanes>::type Vector;
  const auto at = [](const A* x, int64_t i) {
    Vector y;
    load<A, kLanes>(x + i, y);
    return y;
  };
  Padded<A> outside, inside;
  for (int64_t w = words.begin; w < words.end; ++w) {
    const int64_t i = w * kWord;
    const A* const drive = outside.of(current + i, n - i);
    const A* const more = kArrived ? inside.of(arrived + i, n - i) : nullptr;
    uint32_t spikes = 0, nearly = 0;
    ask_for<false>(current + n + i);
    RANVIER_UNROLLED
    for (int l = 0; l < kWord; l += kLanes) {
      const Vector threshold = at(of.threshold, i + l), last = at(before, i + l);
      Vector sum = at(drive, l);
      if constexpr (kArrived) sum += at(more, l);
      const Vector kept = last > threshold ? Vector{} : last;
      const Vector next = at(of.decay, i + l) * kept + at(of.scale, i + l) * sum;
      store<A, kLanes>(v + i + l, next);
      spikes |= above<A>(next, threshold) << l;
      nearly |= above<A>(next, at(of.near, i + l)) << l;
    }
    fired[w] = spikes, near[w] = nearly & ~spikes;
  }
}

template <class A>
void charge(const LifParameters<A>& of, LifWords words, int64_t n, const A* current, const A* arrived, const A* before,
            A* v, uint32_t* fired, uint32_t* near) {
  const auto which = arrived ? charge_<A, true> : charge_<A, false>;
  which(of, words, n, current, arrived, before, v, fired, near);
}

// Places of the bits of all words.
inline int64_t list_words(const uint32_t* words, int64_t n_words, int32_t* to) {
  int32_t* end = to;
  for (int64_t w = 0; w < n_words; ++w)
    if (words[w]) end = list_bits(words[w], static_cast<int32_t>(w * kWord), end);
  return end - to;
}

template <class A>
void list(const LifParameters<A>& of, int64_t n_words, int64_t slots, const uint32_t* fired, const uint32_t* near,
          const A* v, int32_t* room, const LifList<A>& to) {
  const int64_t all = list_words(fired, n_words, room), n_spikes = std::min(all, slots);
  std::copy(room, room + n_spikes, to.ids);
  const int64_t all_near = list_words(near, n_words, room), n_near = std::min(all_near, slots - n_spikes);
  std::copy(room, room + n_near, to.ids + n_spikes);
  const int64_t listed = n_spikes + n_near;
  for (int64_t s = 0; s < listed; ++s) to.excess[s] = v[to.ids[s]] - of.threshold[to.ids[s]];
  std::fill(to.ids + listed, to.ids + slots, 0);
  std::fill(to.excess + listed, to.excess + slots, A(0));
  *to.n_spikes = static_cast<int32_t>(n_spikes), *to.n_near = static_cast<int32_t>(n_near);
  *to.n_lost = static_cast<int32_t>(all - n_spikes), *to.n_near_dropped = static_cast<int32_t>(all_near - n_near);
}

// Integers as wide as a number.
template <class A>
struct Bits;
template <>
struct Bits<float> {
  typedef uint32_t type;
};
template <>
struct Bits<double> {
  typedef uint64_t type;
};

// Bit l as a number.
template <class X>
constexpr std::array<X, kWord> each_bit() {
  std::array<X, kWord> bits{};
  for (int l = 0; l < kWord; ++l) bits[l] = X(1) << l;
  return bits;
}
template <class X>
constexpr std::array<X, kWord> kBit = each_bit<X>();

template <class A>
void pass_back(const LifParameters<A>& of, LifWords words, int64_t n, const uint32_t* fired_before, A* lam,
               A* d_current) {
  typedef typename Bits<A>::type Mask;
  for (int64_t w = words.begin; w < words.end; ++w) {
    const int64_t i = w * kWord;
    const A *const decay = of.decay + i, *const scale = of.scale + i;
    const Mask fired = fired_before[w];
    ask_for<true>(d_current + n + i);
    A out[kWord];
    for (int l = 0; l < kWord; ++l) {
      const A x = lam[i + l];
      out[l] = scale[l] * x;
      lam[i + l] = fired & kBit<Mask>[l] ? A(0) : decay[l] * x;
    }
    if (n - i >= kWord)
      std::copy(out, out + kWord, d_current + i);
    else
      std::copy(out, out + (n - i), d_current + i);
  }
}

}  // namespace

template <class A>
LifLoopKernels<A> lif_loop_kernels() {
  return {charge<A>, list<A>, pass_back<A>};
}

template LifLoopKernels<float> lif_loop_kernels<float>();
template LifLoopKernels<double> lif_loop_kernels<double>();

}  // namespace RANVIER_NS
}  // namespace ranvier
