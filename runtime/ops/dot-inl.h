// Integer dot products of one packed group (packed_matrix.h) with one row of int8 activations, for
// each SIMD target. Included once per target.
#if defined(WHIT_RUNTIME_OPS_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WHIT_RUNTIME_OPS_DOT_INL_H_
#undef WHIT_RUNTIME_OPS_DOT_INL_H_
#else
#define WHIT_RUNTIME_OPS_DOT_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "runtime/ops/cpu_extension.h"
#include "runtime/ops/packed_matrix.h"
#if HWY_ARCH_ARM_A64
#include "runtime/ops/neon_dot-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // Highway before 1.1 leaves VNNI out of this target
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A vector holds 16, 8, 4 or 1 rows of a panel.
using DF = hn::CappedTag<float, kPanelRows>;
using DI32 = hn::Rebind<int32_t, DF>;
using VF = hn::Vec<DF>;
using VI32 = hn::Vec<DI32>;

// Four consecutive activations, one for each byte of an i32 lane.
HWY_INLINE int32_t LoadQuad(const int8_t* a, size_t quad) {
  int32_t value;
  std::memcpy(&value, a + 4 * quad, sizeof(value));
  return value;
}

// The 8 quads of columns of a group for the vector of rows that begins at `lane`, unpacked and
// ready to be multiplied with many rows of activations. Columns<kBegin, kEnd>(a) is the sum over
// the quads [kBegin, kEnd), multiples of 4, of code * activation, as floats (exact: below 2^24).
//
// Every target and extension computes the same integers.
#if HWY_TARGET == HWY_AVX3_DL

// u8 x s8. Signed 8-bit codes are biased by 128 to be unsigned, and -128 * sum(a) is taken off
// again; the bias of the activation sum costs one more dot instruction on a constant.
template <bool kU4, CpuExtension>
struct GroupDot {
  HWY_INLINE GroupDot(const std::byte* group, size_t /*lane: the vector has all rows*/) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(group);
    if constexpr (kU4) {
      const __m512i low = _mm512_set1_epi8(0xF);
      for (size_t i = 0; i < 4; ++i) {
        const __m512i pair = _mm512_loadu_si512(bytes + 64 * i);
        codes[i] = _mm512_and_si512(pair, low);
        codes[i + 4] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
      }
    } else {
      const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
      for (size_t i = 0; i < 8; ++i) {
        codes[i] = _mm512_xor_si512(_mm512_loadu_si512(bytes + 64 * i), bias);
      }
    }
  }

  template <size_t kBegin, size_t kEnd>
  HWY_INLINE VF Columns(const int8_t* a) const {
    // One chain: rows do not depend on each other, and there are enough of them in flight.
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = kBegin; i < kEnd; ++i) {
      sum = _mm512_dpbusd_epi32(sum, codes[i], _mm512_set1_epi32(LoadQuad(a, i)));
    }
    if constexpr (!kU4) {
      __m512i bias = _mm512_setzero_si512();
      const __m512i ones = _mm512_set1_epi8(static_cast<char>(0x80));
      for (size_t i = kBegin; i < kEnd; ++i) {
        bias = _mm512_dpbusd_epi32(bias, ones, _mm512_set1_epi32(LoadQuad(a, i)));
      }
      sum = _mm512_sub_epi32(sum, bias);
    }
    return VF{_mm512_cvtepi32_ps(sum)};
  }

  __m512i codes[8];
};

#elif HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

// 8 rows a vector, AVX-512 without VNNI included. maddubs multiplies u8 by s8 and adds pairs into
// i16. 4-bit codes: 16 products of at most 15 * 127 fit an i16 lane, so all 8 quads add up there.
// 8-bit codes: |code| * sign(a, code), one pair (at most 2 * 128 * 127) fits; each quad is widened
// to i32.
template <bool kU4>
struct GroupDot256 {
  HWY_INLINE GroupDot256(const std::byte* group, size_t lane) {
    const std::byte* bytes = group + 4 * lane;
    if constexpr (kU4) {
      const __m256i low = _mm256_set1_epi8(0xF);
      for (size_t i = 0; i < 4; ++i) {
        const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * i));
        codes[i] = _mm256_and_si256(pair, low);
        codes[i + 4] = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
      }
    } else {
      for (size_t i = 0; i < 8; ++i) {
        codes[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * i));
      }
    }
  }

  template <size_t kBegin, size_t kEnd>
  HWY_INLINE __m256 Columns(const int8_t* a) const {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = kBegin; i < kEnd; ++i) {
      const __m256i quad = _mm256_set1_epi32(LoadQuad(a, i));
      if constexpr (kU4) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes[i], quad));
      } else {
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(quad, codes[i]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      }
    }
    return _mm256_cvtepi32_ps(kU4 ? _mm256_madd_epi16(sum, ones) : sum);
  }

  __m256i codes[8];
};

#if HWY_TARGET == HWY_AVX2
template <bool kU4, CpuExtension>
struct GroupDot {
  HWY_INLINE GroupDot(const std::byte* group, size_t lane) : rows(group, lane) {}
  template <size_t kBegin, size_t kEnd>
  HWY_INLINE VF Columns(const int8_t* a) const {
    return VF{rows.template Columns<kBegin, kEnd>(a)};
  }
  GroupDot256<kU4> rows;
};
#else
template <bool kU4, CpuExtension>
struct GroupDot {
  HWY_INLINE GroupDot(const std::byte* group, size_t) : low(group, 0), high(group, 8) {}
  template <size_t kBegin, size_t kEnd>
  HWY_INLINE VF Columns(const int8_t* a) const {
    const __m256 rows0 = low.template Columns<kBegin, kEnd>(a);
    const __m256 rows8 = high.template Columns<kBegin, kEnd>(a);
    return VF{_mm512_insertf32x8(_mm512_castps256_ps512(rows0), rows8, 1)};
  }
  GroupDot256<kU4> low, high;
};
#endif

#elif HWY_ARCH_ARM_A64

// 4 rows a vector. The codes of a group fill 8 of the 32 registers.
template <bool kU4, CpuExtension kExtension>
struct GroupDot {
  HWY_INLINE GroupDot(const std::byte* group, size_t lane) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(group) + 4 * lane;
    if constexpr (kU4) {
      for (size_t i = 0; i < 4; ++i) {
        const uint8x16_t pair = vld1q_u8(bytes + 64 * i);
        codes[i] = vreinterpretq_s8_u8(vandq_u8(pair, vdupq_n_u8(0xF)));
        codes[i + 4] = vreinterpretq_s8_u8(vshrq_n_u8(pair, 4));
      }
    } else {
      for (size_t i = 0; i < 8; ++i) codes[i] = vreinterpretq_s8_u8(vld1q_u8(bytes + 64 * i));
    }
  }

  template <size_t kBegin, size_t kEnd>
  HWY_INLINE VF Columns(const int8_t* a) const {
    if constexpr (kExtension == CpuExtension::kDotProduct) {
      int32x4_t sum = vdupq_n_s32(0);
      for (size_t i = kBegin; i < kEnd; i += 4) {
        const int8x16_t quads = vld1q_s8(a + 4 * i);
        sum = neon::SignedDotOfQuad<0>(sum, codes[i], quads);
        sum = neon::SignedDotOfQuad<1>(sum, codes[i + 1], quads);
        sum = neon::SignedDotOfQuad<2>(sum, codes[i + 2], quads);
        sum = neon::SignedDotOfQuad<3>(sum, codes[i + 3], quads);
      }
      return VF(vcvtq_f32_s32(sum));
    } else if constexpr (kU4) {
      // As with AVX2: 16 products of at most 15 * 127 fit 16 bits.
      int16x8_t low = vdupq_n_s16(0), high = low;
      for (size_t i = kBegin; i < kEnd; ++i) {
        const int8x16_t quad = vreinterpretq_s8_s32(vdupq_n_s32(LoadQuad(a, i)));
        low = vmlal_s8(low, vget_low_s8(codes[i]), vget_low_s8(quad));
        high = vmlal_high_s8(high, codes[i], quad);
      }
      return VF(vcvtq_f32_s32(vpaddlq_s16(vpaddq_s16(low, high))));
    } else {
      int32x4_t sum = vdupq_n_s32(0);
      for (size_t i = kBegin; i < kEnd; ++i) {
        const int8x16_t quad = vreinterpretq_s8_s32(vdupq_n_s32(LoadQuad(a, i)));
        sum = neon::SignedDot<kExtension>(sum, codes[i], quad);
      }
      return VF(vcvtq_f32_s32(sum));
    }
  }

  int8x16_t codes[8];
};

#else

// Any other target: each byte of a quad is widened to its i32 lane.
template <bool kU4, CpuExtension>
struct GroupDot {
  HWY_INLINE GroupDot(const std::byte* group, size_t lane) : bytes(group + 4 * lane) {}

  template <size_t kBegin, size_t kEnd>
  HWY_INLINE VF Columns(const int8_t* a) const {
    const DI32 di;
    VI32 sum = hn::Zero(di);
    for (size_t i = kBegin; i < kEnd; ++i) {
      const size_t row = kU4 ? i % 4 : i;
      VI32 quad = hn::LoadU(di, reinterpret_cast<const int32_t*>(bytes + 64 * row));
      if constexpr (kU4) {
        quad = hn::And(i < 4 ? quad : hn::ShiftRight<4>(quad), hn::Set(di, 0x0F0F0F0F));
      }
      const VI32 c0 = hn::ShiftRight<24>(hn::ShiftLeft<24>(quad));
      const VI32 c1 = hn::ShiftRight<24>(hn::ShiftLeft<16>(quad));
      const VI32 c2 = hn::ShiftRight<24>(hn::ShiftLeft<8>(quad));
      const VI32 c3 = hn::ShiftRight<24>(quad);
      sum = hn::Add(sum, hn::Add(hn::Add(hn::Mul(c0, hn::Set(di, a[4 * i])),
                                         hn::Mul(c1, hn::Set(di, a[4 * i + 1]))),
                                 hn::Add(hn::Mul(c2, hn::Set(di, a[4 * i + 2])),
                                         hn::Mul(c3, hn::Set(di, a[4 * i + 3])))));
    }
    return hn::ConvertTo(DF(), sum);
  }

  const std::byte* bytes;
};

#endif

}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#endif  // WHIT_RUNTIME_OPS_DOT_INL_H_
