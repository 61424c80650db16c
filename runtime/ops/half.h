// Scalar conversion of the 16-bit float formats.
#ifndef WHIT_RUNTIME_OPS_HALF_H_
#define WHIT_RUNTIME_OPS_HALF_H_

#include <bit>
#include <cstdint>

namespace whit {

// IEEE binary16, every value exact.
inline float HalfToFloat(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t exponent = (h >> 10) & 0x1F;
  const uint32_t mantissa = h & 0x3FF;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    return std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f) |
                                sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline float BFloat16ToFloat(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }

// The nearest, of two the one farther from zero.
inline uint16_t FloatToBFloat16(float x) {
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + 0x8000) >> 16);
}

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_HALF_H_
