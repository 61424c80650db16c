#include "tests/bench/process_runner.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

// An engine that knows one request of each kind.
constexpr char kEngine[] = R"(
echo '{"name": "Engine 1.2", "settings": "fast"}'
while read -r line; do
  case $line in
    '{"depth":16,"do":"prepare","sequences":2}') echo '{"seconds": 0}' ;;
    '{"do":"decode","steps":3}') echo '{"seconds": 0.25}' ;;
    '{"do":"prefill","tokens":512}') echo '{"seconds": 2}' ;;
    '{"do":"prefill","tokens":1}') echo '{}' ;;
    '{"do":"prefill","tokens":2}') echo 'Segmentation fault' ;;
    *) echo '{"error": "no room"}' ;;
  esac
done
)";

absl::StatusOr<std::unique_ptr<ProcessRunner>> StartShell(const std::string& script) {
  return ProcessRunner::Start({"/bin/sh", "-c", script});
}

TEST(ProcessRunnerTest, GivesTheProcessesOwnTimes) {
  auto runner = StartShell(kEngine);
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_EQ((*runner)->name(), "Engine 1.2");
  EXPECT_TRUE((*runner)->Prepare(2, 16).ok());
  EXPECT_EQ((*runner)->Decode(3).value(), 0.25);
  EXPECT_EQ((*runner)->Prefill(512).value(), 2);
}

TEST(ProcessRunnerTest, SaysWhatWentWrong) {
  auto runner = StartShell(kEngine);
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_THAT(std::string((*runner)->Prepare(2, 17).message()), HasSubstr("no room"));
  EXPECT_THAT(std::string((*runner)->Prefill(1).status().message()), HasSubstr("no time"));
  EXPECT_THAT(std::string((*runner)->Prefill(2).status().message()),
              HasSubstr("Segmentation fault"));
}

TEST(ProcessRunnerTest, SaysWhyItCannotStart) {
  EXPECT_THAT(std::string(StartShell(R"(echo '{"error": "no such file"}')").status().message()),
              HasSubstr("no such file"));
  EXPECT_FALSE(StartShell("echo '{}'").ok());
  EXPECT_FALSE(StartShell("echo hello").ok());
}

}  // namespace
}  // namespace whit
