#include "tests/bench/report.h"

#include <cstdio>

#include "absl/strings/ascii.h"
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

}  // namespace

std::string JsonLine(const Row& row) {
  auto peers = nlohmann::ordered_json::array();
  for (const PeerFigure& peer : row.peers) {
    peers.push_back({{"name", peer.name},
                     {"settings", OrNull(peer.settings)},
                     {"value", peer.value},
                     {"ratio", peer.ratio}});
  }
  return nlohmann::ordered_json({{"name", row.name},
                                 {"value", row.value},
                                 {"unit", row.unit},
                                 {"roof_share", OrNull(row.roof_share)},
                                 {"roof", OrNull(row.roof)},
                                 {"peers", peers}})
      .dump();
}

std::string TableLine(const Row& row) {
  const std::string share =
      row.roof_share ? absl::StrFormat("%.2f %-6s", *row.roof_share, row.roof) : "";
  std::string line =
      absl::StrFormat("%-24s %10.2f %-6s %15s", row.name, row.value, row.unit, share);
  for (const PeerFigure& peer : row.peers) {
    absl::StrAppendFormat(&line, " %10.2f %6.2fx %-10s", peer.value, peer.ratio, peer.settings);
  }
  return std::string(absl::StripTrailingAsciiWhitespace(line));
}

std::string TableHeader(absl::Span<const std::string> peers) {
  std::string header = absl::StrFormat("%-24s %10s %-6s %15s", "", "Whit", "", "share of roof");
  for (const std::string& peer : peers) absl::StrAppendFormat(&header, "    %-26s", peer);
  return header;
}

void Report::Note(const std::string& line) const {
  if (!json_) absl::PrintF("%s\n", line);
}

void Report::Header(absl::Span<const std::string> peers) const {
  if (json_) return;
  absl::PrintF("\n%s\n", TableHeader(peers));
  std::fflush(stdout);
}

void Report::Print(const Row& row) const {
  absl::PrintF("%s\n", json_ ? JsonLine(row) : TableLine(row));
  std::fflush(stdout);
}

}  // namespace whit
