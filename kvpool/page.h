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

// FP16 page, head_dim d, all IEEE binary16:
//   keys    [d][16 tokens]   a dimension's 16 tokens lie side by side, so that scores of 16 tokens
//                            advance together with no horizontal sum;
//   values  [16 tokens][d]   a token's dimensions lie side by side.
// Slots past `tokens` are zero.
struct Fp16PageLayout {
  static constexpr size_t KeyOffset(int /*head_dim*/) { return 0; }
  static constexpr size_t ValueOffset(int head_dim) {
    return sizeof(uint16_t) * kTileTokens * static_cast<size_t>(head_dim);
  }
};

// One page as a sequence sees it. Two sequences may share a page and see different token counts.
struct PageEntry {
  uint32_t unit = 0;  // offset from the pool's base, in kPageUnitBytes
  Rung rung = Rung::kFp16;
  uint8_t tokens = 0;       // 1..16
  uint16_t mean_block = 0;  // which K mean was subtracted (quantized rungs)
};
static_assert(sizeof(PageEntry) == 8);

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_H_
