// Dot products of four bytes by four bytes in every 32-bit lane for the NEON targets, with and
// without the dot-product instructions. Included once per target.
#if defined(WHIT_RUNTIME_OPS_NEON_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WHIT_RUNTIME_OPS_NEON_DOT_INL_H_
#undef WHIT_RUNTIME_OPS_NEON_DOT_INL_H_
#else
#define WHIT_RUNTIME_OPS_NEON_DOT_INL_H_
#endif

#include <arm_neon.h>

#include "hwy/highway.h"
#include "runtime/ops/cpu_extension.h"

HWY_BEFORE_NAMESPACE();
// The instructions are written as assembly because their intrinsics can be inlined only into
// functions compiled for Armv8.2, and the kernels are compiled for any Armv8. The assembler has to
// be told, unless the target includes them; what it then accepts includes all that the compiler may
// write for the target.
#ifdef __ARM_FEATURE_DOTPROD
#define WHIT_ASM_DOTPROD ""
#else
#define WHIT_ASM_DOTPROD ".arch armv8.2-a+crypto+dotprod\n\t"
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace neon {

// sum + a0 * b0 + … + a3 * b3 in each lane, all signed. Without the instruction, the products of
// two neighbours must fit 16 bits together: -128 only against up to 127.
template <CpuExtension kExtension>
HWY_INLINE int32x4_t SignedDot(int32x4_t sum, int8x16_t a, int8x16_t b) {
  if constexpr (kExtension == CpuExtension::kDotProduct) {
    asm(WHIT_ASM_DOTPROD "sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
  } else {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(a, b)));
  }
}

// The same of unsigned bytes. Without the instruction, the products of two neighbours must fit 16
// bits together.
template <CpuExtension kExtension>
HWY_INLINE uint32x4_t UnsignedDot(uint32x4_t sum, uint8x16_t a, uint8x16_t b) {
  if constexpr (kExtension == CpuExtension::kDotProduct) {
    asm(WHIT_ASM_DOTPROD "udot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
  } else {
    const uint16x8_t low = vmull_u8(vget_low_u8(a), vget_low_u8(b));
    return vpadalq_u16(sum, vpaddq_u16(low, vmull_high_u8(a, b)));
  }
}

// SignedDot of a and b's quad kQuad, the same one in every lane.
template <int kQuad>
HWY_INLINE int32x4_t SignedDotOfQuad(int32x4_t sum, int8x16_t a, int8x16_t b) {
  asm(WHIT_ASM_DOTPROD "sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(a), "w"(b), "i"(kQuad));
  return sum;
}

}  // namespace neon
}  // namespace HWY_NAMESPACE
}  // namespace whit
#undef WHIT_ASM_DOTPROD
HWY_AFTER_NAMESPACE();

#endif  // WHIT_RUNTIME_OPS_NEON_DOT_INL_H_
