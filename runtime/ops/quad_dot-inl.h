// Integer dot products of four bytes by four bytes in every 32-bit lane, for each SIMD target.
// Included once per target.
#if defined(WHIT_RUNTIME_OPS_QUAD_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WHIT_RUNTIME_OPS_QUAD_DOT_INL_H_
#undef WHIT_RUNTIME_OPS_QUAD_DOT_INL_H_
#else
#define WHIT_RUNTIME_OPS_QUAD_DOT_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "runtime/ops/cpu_extension.h"
#if HWY_ARCH_ARM_A64
#include "runtime/ops/neon_dot-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // Highway before 1.1 leaves VNNI out of this target
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace quad_dot {
namespace hn = hwy::HWY_NAMESPACE;

// A row of 64 bytes is 16, 8, 4 or 1 lanes of four bytes at a time.
using DF = hn::CappedTag<float, 16>;
using DI = hn::Rebind<int32_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;

// Bytes 4 * quad .. 4 * quad + 3, in every lane.
HWY_INLINE VI BroadcastQuad(const void* bytes, size_t quad) {
  int32_t value;
  std::memcpy(&value, static_cast<const char*>(bytes) + 4 * quad, sizeof(value));
  return hn::Set(DI(), value);
}

// sum + u0 * s0 + … + u3 * s3 in each lane, u unsigned bytes of at most kMaxU, s signed ones from
// kMinS to kMaxS. Exact; every target and extension computes the same integers.
#if HWY_TARGET == HWY_AVX3_DL

template <CpuExtension, int kMaxU, int kMinS, int kMaxS>
HWY_INLINE VI Add(VI sum, VI u, VI s) {
  return VI{_mm512_dpbusd_epi32(sum.raw, u.raw, s.raw)};
}

#elif HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || \
    HWY_TARGET == HWY_SSSE3

// Products of neighbours, added into 16 bits, where they must fit; then neighbours again.
HWY_INLINE VI MulPairsAdd(VI u, VI s) {
#if HWY_TARGET == HWY_AVX3
  return VI{_mm512_madd_epi16(_mm512_maddubs_epi16(u.raw, s.raw), _mm512_set1_epi16(1))};
#elif HWY_TARGET == HWY_AVX2
  return VI{_mm256_madd_epi16(_mm256_maddubs_epi16(u.raw, s.raw), _mm256_set1_epi16(1))};
#else
  return VI{_mm_madd_epi16(_mm_maddubs_epi16(u.raw, s.raw), _mm_set1_epi16(1))};
#endif
}

template <CpuExtension, int kMaxU, int kMinS, int kMaxS>
HWY_INLINE VI Add(VI sum, VI u, VI s) {
  if constexpr (2 * kMaxU * (-kMinS > kMaxS ? -kMinS : kMaxS) <= 32767) {
    return hn::Add(sum, MulPairsAdd(u, s));
  } else {
    const VI low = hn::Set(DI(), 0x7F7F7F7F);
    const VI halves = hn::Add(MulPairsAdd(hn::And(u, low), s), MulPairsAdd(hn::AndNot(low, u), s));
    return hn::Add(sum, halves);
  }
}

#elif HWY_ARCH_ARM_A64

template <CpuExtension kExtension, int kMaxU, int kMinS, int kMaxS>
HWY_INLINE VI Add(VI sum, VI u, VI s) {
  const uint8x16_t unsigned_u = vreinterpretq_u8_s32(u.raw);
  if constexpr (kMinS >= 0) {
    static_assert(2 * kMaxU * kMaxS <= 65535, "UnsignedDot needs it");
    const uint8x16_t unsigned_s = vreinterpretq_u8_s32(s.raw);
    return VI(vreinterpretq_s32_u32(
        neon::UnsignedDot<kExtension>(vreinterpretq_u32_s32(sum.raw), unsigned_u, unsigned_s)));
  } else {
    const auto add = [&](uint8x16_t part) HWY_ATTR {
      sum.raw = neon::SignedDot<kExtension>(sum.raw, vreinterpretq_s8_u8(part),
                                            vreinterpretq_s8_s32(s.raw));
    };
    if constexpr (kMaxU <= 127) {
      add(unsigned_u);
    } else {
      // u = half + half + its lowest bit. (Armv8.6 multiplies u8 by s8; only 8-bit codes need it.)
      const uint8x16_t half = vshrq_n_u8(unsigned_u, 1);
      add(half);
      add(half);
      add(vandq_u8(unsigned_u, vdupq_n_u8(1)));
    }
    return sum;
  }
}

#else

// Any other target: byte by byte.
template <int kByte>
HWY_INLINE VI Product(VI u, VI s) {
  return hn::Mul(hn::And(hn::ShiftRight<8 * kByte>(u), hn::Set(DI(), 0xFF)),
                 hn::ShiftRight<24>(hn::ShiftLeft<24 - 8 * kByte>(s)));
}

template <CpuExtension, int kMaxU, int kMinS, int kMaxS>
HWY_INLINE VI Add(VI sum, VI u, VI s) {
  return hn::Add(sum, hn::Add(hn::Add(Product<0>(u, s), Product<1>(u, s)),
                              hn::Add(Product<2>(u, s), Product<3>(u, s))));
}

#endif

}  // namespace quad_dot
}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#endif  // WHIT_RUNTIME_OPS_QUAD_DOT_INL_H_
