// Quantizer: writes tokens' keys and values into a page at the page's precision.
#ifndef WHIT_KVPOOL_QUANTIZER_H_
#define WHIT_KVPOOL_QUANTIZER_H_

#include <cstddef>

#include "kvpool/rung.h"

namespace whit {

// Consecutive tokens of one (layer, KV head): rows of head_dim floats, `stride` floats apart.
struct TokenRows {
  const float* keys = nullptr;  // after RoPE
  const float* values = nullptr;
  size_t stride = 0;
};

// Writes `count` tokens into the slots from `slot` on of an FP16 page (layout: page.h), rounded to
// the nearest binary16; values beyond its range become its largest. slot + count <= kTileTokens.
void WriteFp16(std::byte* page, int head_dim, int slot, int count, const TokenRows& rows);

}  // namespace whit

#endif  // WHIT_KVPOOL_QUANTIZER_H_
