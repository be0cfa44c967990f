// CPU: comparisons of numbers side by side as bits, and the places of the bits of a word as a list.
#pragma once
#include <array>
#include <cstdint>

#include "register.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace RANVIER_NS {

// Bit l: a[l] > b[l], for two registers V of numbers A.
template <class A, class V>
inline uint32_t above(const V& a, const V& b) {
  static_assert(sizeof(V) == kRegister);
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
  else
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
#elif defined(__AVX__)
  if constexpr (sizeof(A) == 4)
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)));
  else
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ)));
#elif defined(__SSE2__)
  if constexpr (sizeof(A) == 4)
    return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b)));
  else
    return static_cast<uint32_t>(_mm_movemask_pd(_mm_cmpgt_pd((__m128d)a, (__m128d)b)));
#else
  uint32_t bits = 0;
  for (int l = 0; l < int(sizeof(V) / sizeof(A)); ++l) bits |= uint32_t(a[l] > b[l]) << l;
  return bits;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each byte, the places of its bits.
constexpr std::array<uint64_t, 256> places_of_bytes() {
  std::array<uint64_t, 256> table{};
  for (int byte = 0; byte < 256; ++byte)
    for (int bit = 0, at = 0; bit < 8; ++bit)
      if (byte >> bit & 1) table[byte] |= uint64_t(bit) << 8 * at++;
  return table;
}
inline constexpr std::array<uint64_t, 256> kPlaces = places_of_bytes();
#endif

// Puts first + l for each bit l of the word at `to`, ascending, and returns where they end. Up to 16 places behind that
// may be written, too.
inline int32_t* list_bits(uint32_t word, int32_t first, int32_t* to) {
#if defined(__AVX512F__)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int l = 0; l < 32; l += 16, word >>= 16) {
    const __m512i ids = _mm512_maskz_add_epi32(0xffff, lane, _mm512_set1_epi32(first + l));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(word), ids));
    to += __builtin_popcount(word & 0xffff);
  }
#elif defined(__AVX2__)
  for (int l = 0; l < 32; l += 8, word >>= 8) {
    const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kPlaces[word & 0xff]));
    const __m256i ids = _mm256_add_epi32(_mm256_cvtepu8_epi32(places), _mm256_set1_epi32(first + l));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), ids);
    to += __builtin_popcount(word & 0xff);
  }
#else
  for (; word; word &= word - 1) *to++ = first + __builtin_ctz(word);
#endif
  return to;
}

}  // namespace RANVIER_NS
}  // namespace ranvier
