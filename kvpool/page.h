// How a page's bytes are laid out, and the 8-byte entry by which a page table names it.
#ifndef WHIT_KVPOOL_PAGE_H_
#define WHIT_KVPOOL_PAGE_H_

#include <cstddef>
#include <cstdint>

#include "kvpool/rung.h"

namespace whit {

// Pages start at multiples of this from the pool's base; an entry counts in this unit, so 32 bits
// address 256 GiB.
inline constexpr size_t kPageUnitBytes = 64;

// Every page holds keys and values rotated by RotateHadamard (quantizer.h). Slots past a page's
// tokens are zero; so are their scales.
//
// FP16, head_dim d, all IEEE binary16:
//   keys    [d][16 tokens]   a dimension's 16 tokens lie side by side, so that scores of 16 tokens
//                            advance together with no horizontal sum;
//   values  [16 tokens][d]   a token's dimensions lie side by side.
struct Fp16PageLayout {
  static constexpr size_t KeyOffset(int /*head_dim*/) { return 0; }
  static constexpr size_t ValueOffset(int head_dim) {
    return sizeof(uint16_t) * kTileTokens * static_cast<size_t>(head_dim);
  }
};

// Quantized, b bits: codes are unsigned, code c stands for (c - (2^b - 1) / 2) * scale.
//   key codes     rows of 64 bytes. A row has four dimensions (a quad) of each of the 16 tokens:
//                 byte [4 * token + dim % 4]. 8 / b rows lie in the bits of one: quad j is in row
//                 j % rows at bit b * (j / rows), rows = d * b / 32.
//   value codes   rows of 64 bytes. A row has four tokens of each of 16 dimensions: byte
//                 [4 * (dim % 16) + token % 4]. A block of 16 dimensions takes b / 2 rows (planes)
//                 side by side: tokens 4u..4u+3 are in plane u % planes at bit b * (u / planes).
//   key scales    [16 tokens] binary16
//   value scales  [16 tokens] binary16
// So one dot instruction of four unsigned by four signed bytes advances 16 tokens' scores by four
// dimensions, or 16 dimensions' values by four tokens.
struct QuantizedPageLayout {
  static constexpr size_t kRowBytes = 64;
  constexpr QuantizedPageLayout(int head_dim, int key_bits, int value_bits)
      : value_codes(size_t{2} * head_dim * key_bits),
        key_scales(value_codes + size_t{2} * head_dim * value_bits),
        value_scales(key_scales + kTileTokens * sizeof(uint16_t)) {}

  static constexpr size_t KeyRows(int head_dim, int bits) {
    return size_t{1} * head_dim * bits / 32;
  }
  static constexpr size_t ValuePlanes(int bits) { return bits / 2; }

  size_t value_codes, key_scales, value_scales;  // byte offsets; key codes are at 0
};

// One page as a sequence sees it. Two sequences may share a page and see different token counts.
struct PageEntry {
  // No mean was subtracted from the page's keys.
  static constexpr uint16_t kNoMean = 0xFFFF;

  uint32_t unit = 0;  // offset from the pool's base, in kPageUnitBytes
  Rung rung = Rung::kFp16;
  uint8_t tokens = 0;             // 1..16
  uint16_t mean_block = kNoMean;  // which mean its keys are relative to (key_means.h)
};
static_assert(sizeof(PageEntry) == 8);

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_H_
