// How results leave whit-eval: tables for people, JSON and CSV for programs.
#ifndef WHIT_TESTS_EVAL_REPORT_H_
#define WHIT_TESTS_EVAL_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"
#include "tests/eval/arm_runner.h"
#include "tests/eval/arms.h"
#include "tests/eval/statistics.h"

namespace whit::eval {

// One result of one arm; the keys keep their order.
using ResultObject = nlohmann::ordered_json;

// Columns as wide as need be; the first flush left, the others flush right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_({std::move(header)}) {}
  void AddRow(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "+.0024 [+.0019, +.0031]": a figure with its interval, the latter left out if it is not known.
std::string WithInterval(const absl::FormatSpec<double>& format, double value,
                         const Interval& interval);

// Packed bits for a table; "-" if no token was decided.
std::string PackedBitsText(const KvFootprint& footprint);

// What every result says of its arm: name, ring and what the footprint holds.
ResultObject DescribeArm(const Arm& arm, const KvFootprint& footprint);

// [low, high]; null where not known.
ResultObject ToJson(const Interval& interval);

// An array with an object a line; one object a line if the name ends in ".jsonl".
absl::Status WriteJson(const std::string& path, absl::Span<const ResultObject> results);
// The single values of the objects, those of inner objects as outer_inner, intervals as _low and
// _high. Lists are left to JSON.
absl::Status WriteCsv(const std::string& path, absl::Span<const ResultObject> results);
absl::Status WriteFile(const std::string& path, const std::string& content);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_REPORT_H_
