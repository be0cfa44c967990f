// CPU: comparisons of 32 numbers as the bits of a word, and the places of the bits of a word as a list.
#pragma once
#include <array>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace RANVIER_NS {

// Bit l: a[l] > b[l].
inline uint32_t above(const float* a, const float* b) {
  uint32_t word = 0;
#if defined(__AVX512F__)
  for (int l = 0; l < 32; l += 16)
    word |= uint32_t(_mm512_cmp_ps_mask(_mm512_loadu_ps(a + l), _mm512_loadu_ps(b + l), _CMP_GT_OQ)) << l;
#elif defined(__AVX2__)
  for (int l = 0; l < 32; l += 8) {
    const __m256 is = _mm256_cmp_ps(_mm256_loadu_ps(a + l), _mm256_loadu_ps(b + l), _CMP_GT_OQ);
    word |= uint32_t(_mm256_movemask_ps(is)) << l;
  }
#elif defined(__SSE2__)
  for (int l = 0; l < 32; l += 4)
    word |= uint32_t(_mm_movemask_ps(_mm_cmpgt_ps(_mm_loadu_ps(a + l), _mm_loadu_ps(b + l)))) << l;
#else
  for (int l = 0; l < 32; ++l) word |= uint32_t(a[l] > b[l]) << l;
#endif
  return word;
}
inline uint32_t above(const double* a, const double* b) {
  uint32_t word = 0;
#if defined(__AVX512F__)
  for (int l = 0; l < 32; l += 8)
    word |= uint32_t(_mm512_cmp_pd_mask(_mm512_loadu_pd(a + l), _mm512_loadu_pd(b + l), _CMP_GT_OQ)) << l;
#elif defined(__AVX2__)
  for (int l = 0; l < 32; l += 4) {
    const __m256d is = _mm256_cmp_pd(_mm256_loadu_pd(a + l), _mm256_loadu_pd(b + l), _CMP_GT_OQ);
    word |= uint32_t(_mm256_movemask_pd(is)) << l;
  }
#elif defined(__SSE2__)
  for (int l = 0; l < 32; l += 2)
    word |= uint32_t(_mm_movemask_pd(_mm_cmpgt_pd(_mm_loadu_pd(a + l), _mm_loadu_pd(b + l)))) << l;
#else
  for (int l = 0; l < 32; ++l) word |= uint32_t(a[l] > b[l]) << l;
#endif
  return word;
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
