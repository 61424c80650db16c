#include "kvpool/rung.h"

#include <array>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace whit {
namespace {

struct RungWidths {
  std::string_view name;
  int key_bits;
  int value_bits;
};

// In the order of the enumeration.
constexpr std::array<RungWidths, kNumRungs> kRungs = {{{"K2V2", 2, 2},
                                                       {"K4V2", 4, 2},
                                                       {"K4V4", 4, 4},
                                                       {"K8V4", 8, 4},
                                                       {"K8V8", 8, 8},
                                                       {"FP16", 16, 16}}};

const RungWidths& Widths(Rung rung) { return kRungs[static_cast<size_t>(rung)]; }

}  // namespace

int KeyBits(Rung rung) { return Widths(rung).key_bits; }
int ValueBits(Rung rung) { return Widths(rung).value_bits; }
std::string_view RungName(Rung rung) { return Widths(rung).name; }

absl::StatusOr<Rung> ParseRung(std::string_view name) {
  std::string names;
  for (int i = 0; i < kNumRungs; ++i) {
    if (kRungs[i].name == name) return static_cast<Rung>(i);
    if (i > 0) names += ", ";
    names += kRungs[i].name;
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is no rung; the rungs are %s", std::string(name), names));
}

size_t PageBytes(Rung rung, int head_dim) {
  const size_t codes = size_t{kTileTokens} * head_dim * (KeyBits(rung) + ValueBits(rung)) / 8;
  const size_t scales = rung == Rung::kFp16 ? 0 : 2 * kTileTokens * sizeof(uint16_t);
  return codes + scales;
}

}  // namespace whit
