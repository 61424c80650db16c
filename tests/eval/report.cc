#include "tests/eval/report.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace whit::eval {
namespace {

size_t Width(const std::string& text) {  // characters, not bytes
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string CsvField(const ResultObject& value) {
  // What JSON writes as null.
  if (value.is_number_float() && !std::isfinite(value.get<double>())) return "";
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  if (text.find_first_of(",\"\n") == text.npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

using Fields = std::vector<std::pair<std::string, std::string>>;

void Flatten(const std::string& prefix, const ResultObject& object, Fields& fields) {
  for (const auto& [key, value] : object.items()) {
    const std::string name = prefix + key;
    if (value.is_object()) {
      Flatten(name + "_", value, fields);
    } else if (!value.is_array()) {
      fields.emplace_back(name, CsvField(value));
    } else if (absl::StartsWith(prefix, "ci95")) {
      fields.emplace_back(name + "_low", CsvField(value[0]));
      fields.emplace_back(name + "_high", CsvField(value[1]));
    }
  }
}

}  // namespace

std::string Table::ToString() const {
  std::vector<size_t> widths(rows_.front().size());
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - Width(row[i]), ' ');
      absl::StrAppend(&line, i == 0 ? row[i] + padding : "  " + padding + row[i]);
    }
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string WithInterval(const absl::FormatSpec<double>& format, double value,
                         const Interval& interval) {
  const std::string text = absl::StrFormat(format, value);
  if (std::isnan(interval.low)) return text;
  return absl::StrCat(text, " [", absl::StrFormat(format, interval.low), ", ",
                      absl::StrFormat(format, interval.high), "]");
}

std::string PackedBitsText(const KvFootprint& footprint) {
  const double bits = footprint.packed_bits();
  return std::isnan(bits) ? "-" : absl::StrFormat("%.3f", bits);
}

ResultObject DescribeArm(const Arm& arm, const KvFootprint& footprint) {
  ResultObject tokens_by_rung = ResultObject::object();
  for (int i = 0; i < kNumRungs; ++i) {
    const auto rung = static_cast<Rung>(i);
    if (footprint.tokens_at(rung) > 0) {
      tokens_by_rung[std::string(RungName(rung))] = footprint.tokens_at(rung);
    }
  }
  return {{"arm", arm.name},
          {"true_bits", footprint.true_bits()},
          {"true_bits_time_averaged", footprint.true_bits_time_averaged()},
          {"packed_bits", footprint.packed_bits()},
          {"kv_bytes_per_token", footprint.bytes_per_token()},
          {"tokens_by_rung", tokens_by_rung},
          {"ring",
           {{"tokens", arm.ring.tokens},
            {"rung", std::string(RungName(arm.ring.rung))},
            {"sink_rung", std::string(RungName(arm.ring.sink_rung))}}}};
}

ResultObject ToJson(const Interval& interval) { return {interval.low, interval.high}; }

absl::Status WriteJson(const std::string& path, absl::Span<const ResultObject> results) {
  std::vector<std::string> lines;
  for (const ResultObject& result : results) lines.push_back(result.dump());
  return WriteFile(path, absl::EndsWith(path, ".jsonl")
                             ? absl::StrJoin(lines, "\n") + "\n"
                             : absl::StrCat("[\n", absl::StrJoin(lines, ",\n"), "\n]\n"));
}

absl::Status WriteCsv(const std::string& path, absl::Span<const ResultObject> results) {
  std::vector<Fields> rows;
  std::vector<std::string> header;  // all names that occur, in the order they first do
  for (const ResultObject& result : results) {
    Flatten("", result, rows.emplace_back());
    for (const auto& [name, value] : rows.back()) {
      if (std::find(header.begin(), header.end(), name) == header.end()) header.push_back(name);
    }
  }
  std::string text = absl::StrJoin(header, ",") + "\n";
  for (const Fields& row : rows) {
    std::vector<std::string> values;
    for (const std::string& name : header) {
      const auto field = std::find_if(row.begin(), row.end(),
                                      [&](const auto& item) { return item.first == name; });
      values.push_back(field == row.end() ? "" : field->second);
    }
    absl::StrAppend(&text, absl::StrJoin(values, ","), "\n");
  }
  return WriteFile(path, text);
}

absl::Status WriteFile(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary);
  out << content;
  out.close();
  if (out) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
}

}  // namespace whit::eval
