// Quantizer: writes tokens' keys and values into pages, and reads them back.
//
// Per token and KV head, a vector of head_dim elements becomes uniform mid-rise codes (levels ±1/2,
// ±3/2, … times a scale). The step is searched for the least squared error; the scale stored is
// |x| / |levels|, which keeps the vector's energy where least squares would shrink it. Vectors are
// rotated first (RotateHadamard), which makes their elements alike, and keys are taken relative to
// a mean (key_means.h).
#ifndef WHIT_KVPOOL_QUANTIZER_H_
#define WHIT_KVPOOL_QUANTIZER_H_

#include <cstddef>
#include <cstdint>

#include "kvpool/rung.h"

namespace whit {

// Consecutive tokens of one (layer, KV head): rows of head_dim floats, `stride` floats apart.
struct TokenRows {
  const float* keys = nullptr;
  const float* values = nullptr;
  size_t stride = 0;
};

// Rotates x[head_dim] in place by an orthonormal Hadamard matrix: of order head_dim if that is a
// power of two, else block by block with the largest power of two that divides it. Its own inverse.
void RotateHadamard(float* x, int head_dim);

// Writes `count` tokens into the slots from `slot` on of a page that holds nothing there. FP16:
// rounded to the nearest, values beyond binary16 become its largest. `key_mean` (head_dim floats,
// or null) is subtracted from keys; FP16 pages take none. slot + count <= kTileTokens.
void WriteTokens(std::byte* page, Rung rung, int head_dim, int slot, int count,
                 const TokenRows& rows, const float* key_mean);

// Reads a page's first `count` tokens into keys and values, [count][head_dim] each; `key_mean` as
// it was written.
void ReadTokens(const std::byte* page, Rung rung, int head_dim, int count, const float* key_mean,
                float* keys, float* values);

// Leaves nothing but a page's first `count` tokens in it.
void KeepTokens(std::byte* page, Rung rung, int head_dim, int count);

// One vector's codes and scale, as WriteTokens stores them. bits: 2, 4 or 8.
void QuantizeVector(const float* x, int head_dim, int bits, uint8_t* codes, float* scale);

}  // namespace whit

#endif  // WHIT_KVPOOL_QUANTIZER_H_
