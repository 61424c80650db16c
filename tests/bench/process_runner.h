// ProcessRunner: an engine with a Python package, driven by tests/bench/peer/engine, whose head
// tells what is said and what is timed.
#ifndef WHIT_TESTS_BENCH_PROCESS_RUNNER_H_
#define WHIT_TESTS_BENCH_PROCESS_RUNNER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "tests/bench/child_process.h"
#include "tests/bench/runner.h"

namespace whit {

// Times are the process's own. It is stopped while another engine runs (ChildProcess).
class ProcessRunner : public Runner {
 public:
  // Starts the process and waits until its model is loaded.
  static absl::StatusOr<std::unique_ptr<ProcessRunner>> Start(
      const std::vector<std::string>& arguments);

  absl::Status Prepare(int sequences, int depth) override;
  absl::StatusOr<double> Decode(int steps) override;
  absl::StatusOr<double> Prefill(int tokens) override;

  // The engine's, with its version.
  const std::string& name() const { return name_; }
  pid_t pid() const { return child_->pid(); }

 private:
  ProcessRunner(std::unique_ptr<ChildProcess> child, std::string name)
      : child_(std::move(child)), name_(std::move(name)) {}
  absl::StatusOr<double> Seconds(const nlohmann::json& request);

  const std::unique_ptr<ChildProcess> child_;
  const std::string name_;
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_PROCESS_RUNNER_H_
