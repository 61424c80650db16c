// kvpool: where keys and values live. This folder owns every byte of KV memory: the precision
// ladder (rung), the pool of pages, a sequence's table of pages, and how a page is laid out. It
// does not decide precision (controller/) and does not compute attention (runtime/ops/).
//
// This file: the precision ladder.
#ifndef WHIT_KVPOOL_RUNG_H_
#define WHIT_KVPOOL_RUNG_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace whit {

// One step of the precision ladder: the widths of keys and values. Lower steps come first.
enum class Rung : uint8_t { kK2V2, kK4V2, kK4V4, kK8V4, kK8V8, kFp16 };
inline constexpr int kNumRungs = 6;

// Tokens of a tile: one page holds 16 tokens of one KV head of one layer.
inline constexpr int kTileTokens = 16;
// Pages that `tokens` tokens of one list take.
constexpr int64_t PagesFor(int64_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

constexpr int KeyBits(Rung rung) {
  constexpr int kBits[kNumRungs] = {2, 4, 4, 8, 8, 16};
  return kBits[static_cast<size_t>(rung)];
}
constexpr int ValueBits(Rung rung) {
  constexpr int kBits[kNumRungs] = {2, 2, 4, 4, 8, 16};
  return kBits[static_cast<size_t>(rung)];
}

// "K4V2", …, "FP16": the spelling used in flags, metrics and the API.
std::string_view RungName(Rung rung);
// INVALID_ARGUMENT lists the names that exist.
absl::StatusOr<Rung> ParseRung(std::string_view name);

// Bytes of one page: codes plus one fp16 scale per token for K and for V (none at FP16). A multiple
// of 64 for every head_dim that is a multiple of 16.
constexpr size_t PageBytes(Rung rung, int head_dim) {
  const size_t codes = size_t{kTileTokens} * head_dim * (KeyBits(rung) + ValueBits(rung)) / 8;
  const size_t scales = rung == Rung::kFp16 ? 0 : 2 * kTileTokens * sizeof(uint16_t);
  return codes + scales;
}

}  // namespace whit

#endif  // WHIT_KVPOOL_RUNG_H_
