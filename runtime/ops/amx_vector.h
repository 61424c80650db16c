// Vectors of AVX-512 beside AMX tiles: floats to pairs of bfloat16, as tiles have them.
#ifndef WHIT_RUNTIME_OPS_AMX_VECTOR_H_
#define WHIT_RUNTIME_OPS_AMX_VECTOR_H_

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#if !defined(__clang__)
// GCC 12 warns of the vectors that its intrinsics leave undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Whoever has AMX has these.
#define WHIT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace whit {

// Pairs of bfloat16, `even` in the lower halves; rounded to nearest, ties away from zero.
WHIT_AVX512 inline __m512i RoundPairs(__m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  return _mm512_mask_blend_epi16(0xAAAAAAAA, low, high);
}

// Stores 16 numbers as bfloat16, rounded to nearest, and returns what they became.
WHIT_AVX512 inline __m512 StoreRounded(__m512 x, uint16_t* to) {
  const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), rounded);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
}

// x = high + low, within 2^-17 of x.
struct SplitPairs {
  __m512i high, low;
};
WHIT_AVX512 inline SplitPairs Split(__m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000), mask = _mm512_set1_epi32(-0x10000);
  const auto round = [&](__m512 x) WHIT_AVX512 {
    return _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), mask);
  };
  const __m512i high_even = round(even), high_odd = round(odd);
  return {.high = _mm512_or_si512(_mm512_srli_epi32(high_even, 16), high_odd),
          .low = RoundPairs(_mm512_sub_ps(even, _mm512_castsi512_ps(high_even)),
                            _mm512_sub_ps(odd, _mm512_castsi512_ps(high_odd)))};
}

}  // namespace whit

#endif  // __x86_64__
#endif  // WHIT_RUNTIME_OPS_AMX_VECTOR_H_
