// What a long run says while it goes on, and how it is ended early.
#ifndef WHIT_TESTS_EVAL_PROGRESS_H_
#define WHIT_TESTS_EVAL_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace whit::eval {

// Lets Ctrl-C or SIGTERM end the measurement under way instead of the process, which then reports
// what it has. A second one ends the process.
void CatchInterrupt();
bool Interrupted();

// On standard error: a bar where that is a terminal, else a line now and then.
class Progress {
 public:
  Progress(std::string label, int64_t total);
  ~Progress();  // clears the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `detail` follows the bar: a figure worth watching.
  void Update(int64_t done, const std::string& detail = "");

 private:
  using Clock = std::chrono::steady_clock;

  const std::string label_;
  const int64_t total_;
  const bool terminal_;
  const Clock::time_point start_;
  Clock::time_point shown_;
};

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_PROGRESS_H_
