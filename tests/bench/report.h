// Prints rows as a table for people or as one JSON object a line.
#ifndef WHIT_TESTS_BENCH_REPORT_H_
#define WHIT_TESTS_BENCH_REPORT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace whit {

struct PeerFigure {
  std::string name;
  double value = 0;
  // How many times the peer's speed: above 1, Whit is faster, also where less is better.
  double ratio = 0;
  std::string settings = {};  // of the peer; empty: there is no choice
};

struct Row {
  std::string name;
  double value = 0;
  std::string unit;
  // The share reached of what the machine could do, in [0, 1], and what bounds it: "memory",
  // "int8" or "bf16".
  std::optional<double> roof_share = std::nullopt;
  std::string roof = {};
  std::vector<PeerFigure> peers = {};
};

// One JSON object.
std::string JsonLine(const Row& row);
// A line of the table, and what stands above its columns.
std::string TableLine(const Row& row);
std::string TableHeader(absl::Span<const std::string> peers);

class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  // A line for people; nothing in JSON.
  void Note(const std::string& line) const;
  void Header(absl::Span<const std::string> peers) const;
  void Print(const Row& row) const;

 private:
  const bool json_;
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_REPORT_H_
