#include "tests/bench/child_process.h"

#include <sys/wait.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::unique_ptr<ChildProcess>> StartShell(const std::string& script) {
  return ChildProcess::Start({"/bin/sh", "-c", script});
}

TEST(ChildProcessTest, AnswersLineByLine) {
  auto child = StartShell("echo ready; exec cat");
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ((*child)->first_line(), "ready");
  for (const std::string& line : {std::string("a"), std::string(), std::string(10000, 'x')}) {
    const auto answer = (*child)->Ask(line);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(*answer, line);
  }
}

TEST(ChildProcessTest, IsStoppedWhenItHasAnswered) {
  auto child = StartShell("echo ready; exec cat");
  ASSERT_TRUE(child.ok()) << child.status();
  for (int i = 0; i < 2; ++i) {
    int status = 0;
    ASSERT_EQ(waitpid((*child)->pid(), &status, WUNTRACED), (*child)->pid());
    EXPECT_TRUE(WIFSTOPPED(status));
    ASSERT_TRUE((*child)->Ask("x").ok());
  }
}

TEST(ChildProcessTest, SaysThatItEnded) {
  const auto at_once = StartShell("exit 0");
  EXPECT_EQ(at_once.status().code(), absl::StatusCode::kUnavailable);
  auto later = StartShell("echo ready; read line");
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ((*later)->Ask("x").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ((*later)->Ask("x").status().code(), absl::StatusCode::kUnavailable);
}

TEST(ChildProcessTest, NamesAProgramThatIsNotThere) {
  const auto child = ChildProcess::Start({"/no/such/program"});
  EXPECT_THAT(std::string(child.status().message()), HasSubstr("/no/such/program"));
}

}  // namespace
}  // namespace whit
