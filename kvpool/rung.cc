#include "kvpool/rung.h"

#include <array>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace whit {
namespace {

// In the order of the enumeration.
constexpr std::array<std::string_view, kNumRungs> kNames = {"K2V2", "K4V2", "K4V4",
                                                            "K8V4", "K8V8", "FP16"};

}  // namespace

std::string_view RungName(Rung rung) { return kNames[static_cast<size_t>(rung)]; }

absl::StatusOr<Rung> ParseRung(std::string_view name) {
  std::string names;
  for (int i = 0; i < kNumRungs; ++i) {
    if (kNames[i] == name) return static_cast<Rung>(i);
    if (i > 0) names += ", ";
    names += kNames[i];
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is no rung; the rungs are %s", std::string(name), names));
}

}  // namespace whit
