#include "tests/bench/simulation/trace.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace whit {
namespace {

constexpr absl::string_view kTitles = "TIMESTAMP,ContextTokens,GeneratedTokens";
constexpr int kMaxTokens = 1 << 20;

}  // namespace

absl::StatusOr<std::vector<TracedRequest>> ParseTrace(std::string_view csv) {
  std::vector<TracedRequest> trace;
  absl::Time first, previous = absl::InfinitePast();
  int number = 0;
  for (absl::string_view line : absl::StrSplit(absl::string_view(csv.data(), csv.size()), '\n')) {
    ++number;
    absl::ConsumeSuffix(&line, "\r");
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrFormat("line %d, \"%s\", %s", number, line.substr(0, 80), what));
    };
    if (number == 1) {
      if (line != kTitles) return error(absl::StrCat("is not \"", kTitles, "\""));
      continue;
    }
    if (line.empty()) continue;
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ',');
    if (fields.size() != 3) return error("does not have 3 fields");
    absl::Time time;
    std::string message;
    if (!absl::ParseTime("%Y-%m-%d %H:%M:%E*S", fields[0], &time, &message)) {
      return error(absl::StrCat("has no time: ", message));
    }
    if (time < previous) return error("is earlier than the line before");
    TracedRequest request;
    if (!absl::SimpleAtoi(fields[1], &request.prompt_tokens) ||
        !absl::SimpleAtoi(fields[2], &request.generated_tokens) ||
        std::min(request.prompt_tokens, request.generated_tokens) < 1 ||
        std::max(request.prompt_tokens, request.generated_tokens) > kMaxTokens) {
      return error(absl::StrFormat("has a number of tokens not in [1, %d]", kMaxTokens));
    }
    if (trace.empty()) first = time;
    previous = time;
    request.arrival = time - first;
    trace.push_back(request);
  }
  if (trace.empty()) return absl::InvalidArgumentError("the trace has no requests");
  return trace;
}

absl::StatusOr<std::vector<TracedRequest>> ReadTrace(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const std::string csv{std::istreambuf_iterator<char>(file), {}};
  absl::StatusOr<std::vector<TracedRequest>> trace = ParseTrace(csv);
  if (!trace.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", trace.status().message()));
  }
  return trace;
}

std::vector<TracedRequest> Repeat(const std::vector<TracedRequest>& trace,
                                  double requests_per_second, absl::Duration duration) {
  // Such that the next turn's first request follows the last one as the others do each other.
  const absl::Duration turn =
      absl::Seconds(static_cast<double>(trace.size()) / requests_per_second);
  const absl::Duration recorded =
      trace.back().arrival + trace.back().arrival / static_cast<int64_t>(trace.size());
  const double speed = recorded > absl::ZeroDuration() ? absl::FDivDuration(turn, recorded) : 0;
  std::vector<TracedRequest> requests;
  for (absl::Duration begin; begin < duration; begin += turn) {
    for (const TracedRequest& recorded_request : trace) {
      TracedRequest request = recorded_request;
      request.arrival = begin + request.arrival * speed;
      if (request.arrival >= duration) return requests;
      requests.push_back(request);
    }
  }
  return requests;
}

}  // namespace whit
