#include "tests/bench/process_runner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace whit {
namespace {

// The object on a line; what it says under "error" as an error.
absl::StatusOr<nlohmann::json> ParseAnswer(const std::string& line) {
  nlohmann::json answer = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!answer.is_object()) {
    return absl::InternalError(absl::StrCat("the peer did not answer in JSON: ", line));
  }
  if (const auto error = answer.find("error"); error != answer.end()) {
    return absl::InternalError(error->is_string() ? error->get<std::string>() : error->dump());
  }
  return answer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessRunner>> ProcessRunner::Start(
    const std::vector<std::string>& arguments) {
  absl::StatusOr<std::unique_ptr<ChildProcess>> child = ChildProcess::Start(arguments);
  if (!child.ok()) return child.status();
  const absl::StatusOr<nlohmann::json> greeting = ParseAnswer((*child)->first_line());
  if (!greeting.ok()) return greeting.status();
  const auto name = greeting->find("name");
  if (name == greeting->end() || !name->is_string()) {
    return absl::InternalError(absl::StrCat("the peer has no name: ", (*child)->first_line()));
  }
  return std::unique_ptr<ProcessRunner>(
      new ProcessRunner(*std::move(child), name->get<std::string>()));
}

absl::Status ProcessRunner::Prepare(int sequences, int depth) {
  return Seconds({{"do", "prepare"}, {"sequences", sequences}, {"depth", depth}}).status();
}

absl::StatusOr<double> ProcessRunner::Decode(int steps) {
  return Seconds({{"do", "decode"}, {"steps", steps}});
}

absl::StatusOr<double> ProcessRunner::Prefill(int tokens) {
  return Seconds({{"do", "prefill"}, {"tokens", tokens}});
}

absl::StatusOr<double> ProcessRunner::Seconds(const nlohmann::json& request) {
  const absl::StatusOr<std::string> line = child_->Ask(request.dump());
  if (!line.ok()) return line.status();
  const absl::StatusOr<nlohmann::json> answer = ParseAnswer(*line);
  if (!answer.ok()) return answer.status();
  const auto seconds = answer->find("seconds");
  if (seconds == answer->end() || !seconds->is_number()) {
    return absl::InternalError(absl::StrCat("the peer gave no time: ", *line));
  }
  return seconds->get<double>();
}

}  // namespace whit
