// CPU: N numbers side by side, read from a matrix of any type and widened to that of the sums.
#pragma once
#include <cstdint>
#include <cstring>

#include "ops_call.h"
#include "register.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Before a short loop whose turns must all be written out, so that what it indexes stays in registers.
#if defined(__clang__)
#define RANVIER_UNROLLED _Pragma("clang loop unroll(full)")
#else
#define RANVIER_UNROLLED _Pragma("GCC unroll 16")
#endif

namespace ranvier {
namespace RANVIER_NS {

template <class A, int N>
struct Lanes {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};
template <class A>
struct Lanes<A, 1> {
  typedef A type;
};

// float and double have the type of the sums. Vectors go by reference: how a function would get them depends on the
// instruction set.
template <class A, int N>
inline void load(const A* x, typename Lanes<A, N>::type& to) {
  std::memcpy(&to, x, sizeof(to));
}
template <class A, int N>
inline void store(A* x, const typename Lanes<A, N>::type& from) {
  std::memcpy(x, &from, sizeof(from));
}

inline float widen(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}
inline float widen(F16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, digits = x.bits & 1023;
  float y;
  if (exponent == 0) {
    y = static_cast<float>(digits) * 0x1p-24f;
    return sign ? -y : y;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | digits << 13;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

// Where the processor widens numbers of 16 bits: half a register of them. (Left to itself the compiler does it in
// parts; the masks of all ones keep it from warning of registers that have no value yet.)
template <class A, int N>
inline void load(const Bf16* x, typename Lanes<A, N>::type& to) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const auto bits = _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, half), 16);
    std::memcpy(&to, &bits, sizeof(to));
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) {
    const auto bits =
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))), 16);
    std::memcpy(&to, &bits, sizeof(to));
    return;
  }
#endif
  A numbers[N];
  for (int l = 0; l < N; ++l) numbers[l] = widen(x[l]);
  std::memcpy(&to, numbers, sizeof(to));
}
template <class A, int N>
inline void load(const F16* x, typename Lanes<A, N>::type& to) {
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const auto y = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    std::memcpy(&to, &y, sizeof(to));
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    const auto y = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    std::memcpy(&to, &y, sizeof(to));
    return;
  }
#endif
  A numbers[N];
  for (int l = 0; l < N; ++l) numbers[l] = widen(x[l]);
  std::memcpy(&to, numbers, sizeof(to));
}

}  // namespace RANVIER_NS
}  // namespace ranvier
