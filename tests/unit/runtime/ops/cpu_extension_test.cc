#include "runtime/ops/cpu_extension.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace whit {
namespace {

// Whether this CPU runs Arm's dot-product instruction, found out by running it.
bool RunsDotProduct() {
#if defined(__aarch64__)
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGILL, [](int) { _exit(1); });
    asm volatile(".inst 0x4e809400" ::: "v0");  // sdot v0.4s, v0.16b, v0.16b
    _exit(0);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status == 0;
#else
  return false;
#endif
}

TEST(CpuExtensionTest, IsWhatTheCpuRuns) {
  EXPECT_EQ(DetectCpuExtension() == CpuExtension::kDotProduct, RunsDotProduct());
}

}  // namespace
}  // namespace whit
