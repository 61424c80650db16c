#include "tests/bench/report.h"

#include <cstdio>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace whit {
namespace {

nlohmann::ordered_json OrNull(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json OrNull(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(text);
}

std::string Cell(const std::optional<double>& value, const char* unit) {
  return value ? absl::StrFormat("%.2f%s", *value, unit) : "";
}

}  // namespace

void Report::Note(const std::string& line) const {
  if (!json_) absl::PrintF("%s\n", line);
}

void Report::Header() const {
  if (json_) return;
  absl::PrintF("\n%-24s %10s %-6s %15s %12s %9s\n", "", "Whit", "", "share of roof", "peer",
               "ratio");
  std::fflush(stdout);
}

void Report::Print(const Row& row) const {
  if (json_) {
    const nlohmann::ordered_json object = {{"name", row.name},
                                           {"value", row.value},
                                           {"unit", row.unit},
                                           {"roof_share", OrNull(row.roof_share)},
                                           {"roof", OrNull(row.roof)},
                                           {"peer", OrNull(row.peer)},
                                           {"peer_value", OrNull(row.peer_value)},
                                           {"ratio", OrNull(row.ratio)}};
    absl::PrintF("%s\n", object.dump());
  } else {
    const std::string share =
        row.roof_share ? absl::StrFormat("%.2f %-6s", *row.roof_share, row.roof) : "";
    absl::PrintF("%-24s %10.2f %-6s %15s %12s %9s\n", row.name, row.value, row.unit, share,
                 Cell(row.peer_value, ""), Cell(row.ratio, "x"));
  }
  std::fflush(stdout);
}

}  // namespace whit
