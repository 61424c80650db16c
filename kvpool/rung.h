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

int KeyBits(Rung rung);
int ValueBits(Rung rung);

// "K4V2", …, "FP16": the spelling used in flags, metrics and the API.
std::string_view RungName(Rung rung);
// INVALID_ARGUMENT lists the names that exist.
absl::StatusOr<Rung> ParseRung(std::string_view name);

// Bytes of one page: codes plus one fp16 scale per token for K and for V (none at FP16). A multiple
// of 64 for every head_dim that is a multiple of 16.
size_t PageBytes(Rung rung, int head_dim);

}  // namespace whit

#endif  // WHIT_KVPOOL_RUNG_H_
