// ChildProcess: a program that is spoken to by lines, and does nothing between them.
#ifndef WHIT_TESTS_BENCH_CHILD_PROCESS_H_
#define WHIT_TESTS_BENCH_CHILD_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace whit {

// The program is stopped (SIGSTOP) but for the time of Start and Ask, with all processes that it
// started: threads of its own that would spin or poll then take nothing from whoever runs next. It
// ends with this object.
class ChildProcess {
 public:
  // Starts `arguments`, the first of them the program's path, and waits for its first line.
  // UNAVAILABLE if it ends before.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(
      const std::vector<std::string>& arguments);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The answer's line to a line; neither has its end. UNAVAILABLE if the program has ended.
  absl::StatusOr<std::string> Ask(const std::string& line);

  const std::string& first_line() const { return first_line_; }
  pid_t pid() const { return pid_; }

 private:
  ChildProcess(pid_t pid, int socket, std::string program)
      : pid_(pid), socket_(socket), program_(std::move(program)) {}
  absl::StatusOr<std::string> ReadLine();

  const pid_t pid_;  // of its process group, too
  const int socket_;
  const std::string program_;
  std::string first_line_;
  std::string read_;  // behind the last line
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_CHILD_PROCESS_H_
