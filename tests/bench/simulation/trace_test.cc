#include "tests/bench/simulation/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace whit {
namespace {

using ::testing::HasSubstr;

constexpr char kTrace[] =
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:47.1805900,396,109\r\n"
    "2023-11-16 18:15:48.6805900,879,55\n";

TEST(TraceTest, HasTimesSinceItsFirstRequestAndLengths) {
  const std::vector<TracedRequest> trace = ParseTrace(kTrace).value();
  ASSERT_EQ(trace.size(), 3);
  EXPECT_EQ(trace[0].arrival, absl::ZeroDuration());
  EXPECT_EQ(trace[1].arrival, absl::Milliseconds(500));
  EXPECT_EQ(trace[1].prompt_tokens, 396);
  EXPECT_EQ(trace[1].generated_tokens, 109);
  EXPECT_EQ(trace[2].arrival, absl::Seconds(2));
}

TEST(TraceTest, NamesWhatIsWrong) {
  const std::string titles = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const auto error = [](const std::string& csv) {
    return std::string(ParseTrace(csv).status().message());
  };
  EXPECT_THAT(error("a,b\n"), HasSubstr("line 1"));
  EXPECT_THAT(error(titles), HasSubstr("no requests"));
  EXPECT_THAT(error(titles + "2023-11-16 18:15:46,3"), HasSubstr("line 2"));
  EXPECT_THAT(error(titles + "yesterday,3,4"), HasSubstr("no time"));
  EXPECT_THAT(error(titles + "2023-11-16 18:15:46,3,0"), HasSubstr("[1, 1048576]"));
  EXPECT_THAT(error(titles + "2023-11-16 18:15:46,3,4\n2023-11-16 18:15:45,3,4"),
              HasSubstr("earlier"));
  EXPECT_THAT(std::string(ReadTrace("/no/such/file").status().message()),
              HasSubstr("/no/such/file"));
}

TEST(TraceTest, RepeatsAtTheWantedRate) {
  const std::vector<TracedRequest> trace = ParseTrace(kTrace).value();
  const std::vector<TracedRequest> long_trace = Repeat(trace, 10, absl::Seconds(60));
  EXPECT_NEAR(static_cast<double>(long_trace.size()), 600, 3);
  for (size_t i = 1; i < long_trace.size(); ++i) {
    ASSERT_GE(long_trace[i].arrival, long_trace[i - 1].arrival);
    ASSERT_EQ(long_trace[i].prompt_tokens, trace[i % 3].prompt_tokens);
  }
  EXPECT_LT(long_trace.back().arrival, absl::Seconds(60));
}

}  // namespace
}  // namespace whit
