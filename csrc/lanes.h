// Vectors for the CPU kernels: neurons in lanes, four numbers of one neuron in a quad, and the turn between the two.
//
// Plain loops over kLanes lanes are vectorised by the compiler where RANVIER_LANES stands before them. Turning lanes
// into quads is written out with the compiler's own vector types, since compilers do it badly; a processor without
// such registers gets the same in pieces.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "host_device.h"
#include "register.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace RANVIER_NS {

constexpr int kLanes = 16;         // neurons of a block: one AVX-512 register of floats
constexpr int kSlot = 4 * kLanes;  // numbers of a block's quads

// Numbers of a vector register, at least four (a quad).
template <class R>
struct Wide;
template <>
struct Wide<float> {
  static constexpr int kN = kRegister / 4;
  typedef float type __attribute__((vector_size(kRegister), may_alias));
  typedef int32_t index __attribute__((vector_size(kRegister)));
  typedef float quad __attribute__((vector_size(16), may_alias));
};
template <>
struct Wide<double> {
  static constexpr int kN = std::max(kRegister, 32) / 8;
  typedef double type __attribute__((vector_size(8 * kN), may_alias));
  typedef int64_t index __attribute__((vector_size(8 * kN)));
  typedef double quad __attribute__((vector_size(32), may_alias));
};
template <class R>
inline typename Wide<R>::type& wide(R* x) {
  return *reinterpret_cast<typename Wide<R>::type*>(x);
}
template <class R>
inline const typename Wide<R>::type& wide(const R* x) {
  return *reinterpret_cast<const typename Wide<R>::type*>(x);
}
template <class R>
inline typename Wide<R>::quad& quad(R* x) {
  return *reinterpret_cast<typename Wide<R>::quad*>(x);
}
template <class R>
inline const typename Wide<R>::quad& quad(const R* x) {
  return *reinterpret_cast<const typename Wide<R>::quad*>(x);
}

// In each four numbers of the result: numbers P0, P1, P2, P3 of the eight that a and b have there.
template <class R, int P0, int P1, int P2, int P3, int... I>
inline void pick_(const typename Wide<R>::type& a, const typename Wide<R>::type& b, typename Wide<R>::type& to,
                  std::integer_sequence<int, I...>) {
  constexpr int kPick[] = {P0, P1, P2, P3};
#if defined(__clang__)
  to = __builtin_shufflevector(a, b, (I / 4 * 4 + kPick[I % 4] % 4 + kPick[I % 4] / 4 * Wide<R>::kN)...);
#else
  to = __builtin_shuffle(a, b,
                         typename Wide<R>::index{(I / 4 * 4 + kPick[I % 4] % 4 + kPick[I % 4] / 4 * Wide<R>::kN)...});
#endif
}
template <class R, int P0, int P1, int P2, int P3>
inline void pick(const typename Wide<R>::type& a, const typename Wide<R>::type& b, typename Wide<R>::type& to) {
  pick_<R, P0, P1, P2, P3>(a, b, to, std::make_integer_sequence<int, Wide<R>::kN>{});
}

// Where the quad of lane l lies among those of its block: in the order in which `to_quads` makes them.
template <class R>
constexpr int quad_of(int l) {
  constexpr int n = Wide<R>::kN;
  return l / n * n * 4 + l % 4 * n + l % n / 4 * 4;
}
// Lanes a, b, q (kLanes each) to quads (a, b, q, 0) and back.
template <class R>
inline void to_quads(const R* a, const R* b, const R* q, R* quads) {
  typename Wide<R>::type low, high, low_q, high_q;
  constexpr int n = Wide<R>::kN;
  const typename Wide<R>::type zero = {};
  for (int l = 0; l < kLanes; l += n) {
    R* const to = quads + 4 * l;
    pick<R, 0, 4, 1, 5>(wide(a + l), wide(b + l), low);
    pick<R, 2, 6, 3, 7>(wide(a + l), wide(b + l), high);
    pick<R, 0, 4, 1, 5>(wide(q + l), zero, low_q);
    pick<R, 2, 6, 3, 7>(wide(q + l), zero, high_q);
    pick<R, 0, 1, 4, 5>(low, low_q, wide(to));
    pick<R, 2, 3, 6, 7>(low, low_q, wide(to + n));
    pick<R, 0, 1, 4, 5>(high, high_q, wide(to + 2 * n));
    pick<R, 2, 3, 6, 7>(high, high_q, wide(to + 3 * n));
  }
}
template <class R>
inline void from_quads(const R* quads, R* a, R* b) {
  typename Wide<R>::type low, high;
  constexpr int n = Wide<R>::kN;
  for (int l = 0; l < kLanes; l += n) {
    const R* const x = quads + 4 * l;
    pick<R, 0, 4, 1, 5>(wide(x), wide(x + n), low);
    pick<R, 0, 4, 1, 5>(wide(x + 2 * n), wide(x + 3 * n), high);
    pick<R, 0, 1, 4, 5>(low, high, wide(a + l));
    pick<R, 2, 3, 6, 7>(low, high, wide(b + l));
  }
}
// A register of the quads at x + at[0], x + at[4] and so on, brought together without a way through memory.
template <class R>
inline void quads_at(const R* x, const uint32_t* at, typename Wide<R>::type& to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(R) == 4) {  // with a mask of all: without one, a header of GCC 12 warns of itself
    to = _mm512_castps128_ps512(_mm_load_ps(x + at[0]));
    to = _mm512_maskz_insertf32x4(0xffff, to, _mm_load_ps(x + at[4]), 1);
    to = _mm512_maskz_insertf32x4(0xffff, to, _mm_load_ps(x + at[8]), 2);
    to = _mm512_maskz_insertf32x4(0xffff, to, _mm_load_ps(x + at[12]), 3);
  } else {
    to = _mm512_castpd256_pd512(_mm256_load_pd(x + at[0]));
    to = _mm512_maskz_insertf64x4(0xff, to, _mm256_load_pd(x + at[4]), 1);
  }
#else
#if defined(__AVX__)
  if constexpr (sizeof(R) == 4)
    to = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(x + at[0])), _mm_load_ps(x + at[4]), 1);
  else
#endif
    to = quad(x + at[0]);
#endif
}
// Quads at x + at[l] for lane l to lanes a, b, q.
template <class R>
inline void from_quads(const R* x, const uint32_t* at, R* a, R* b, R* q) {
  typename Wide<R>::type q0, q1, q2, q3, low, high, low_q, high_q;
  constexpr int n = Wide<R>::kN;
  for (int l = 0; l < kLanes; l += n) {
    quads_at(x, at + l, q0), quads_at(x, at + l + 1, q1);
    quads_at(x, at + l + 2, q2), quads_at(x, at + l + 3, q3);
    pick<R, 0, 4, 1, 5>(q0, q1, low);
    pick<R, 0, 4, 1, 5>(q2, q3, high);
    pick<R, 2, 6, 2, 6>(q0, q1, low_q);
    pick<R, 2, 6, 2, 6>(q2, q3, high_q);
    pick<R, 0, 1, 4, 5>(low, high, wide(a + l));
    pick<R, 2, 3, 6, 7>(low, high, wide(b + l));
    pick<R, 0, 1, 4, 5>(low_q, high_q, wide(q + l));
  }
}

// Before a loop over lanes: what one turn writes no other turn reads.
#if defined(__clang__)
#define RANVIER_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define RANVIER_LANES _Pragma("GCC ivdep")
#endif

// A hot loop in a function of its own: where compilers merge several, they leave some without vectors.
#define RANVIER_APART __attribute__((noinline))

// Asks for the numbers of a block's lanes, to be read soon.
template <class T>
RANVIER_LANE void fetch(const T* x) {
  for (size_t at = 0; at < kLanes; at += 64 / sizeof(T)) __builtin_prefetch(x + at);
}

// Memory on a cache line's boundary; what it holds is not kept when it grows.
template <class R>
class Aligned {
 public:
  R* of(int64_t size) {
    constexpr int64_t kLine = 64;
    const size_t needed = static_cast<size_t>(size) + kLine / sizeof(R);
    if (memory_.size() < needed) memory_ = std::vector<R>(needed);
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + ((at + kLine - 1) / kLine * kLine - at) / sizeof(R);
  }

 private:
  std::vector<R> memory_;
};

}  // namespace RANVIER_NS
}  // namespace ranvier
