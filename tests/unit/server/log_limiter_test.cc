#include "server/log_limiter.h"

#include "gtest/gtest.h"

namespace whit {
namespace {

TEST(LogLimiterTest, TellsHowManyWereLeftOut) {
  LogLimiter limiter;
  absl::Time now = absl::UnixEpoch();
  for (int i = 0; i < kLimitedLinesPerSecond; ++i) EXPECT_EQ(limiter.Admit(now), 0);
  now += absl::Milliseconds(999);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(limiter.Admit(now), std::nullopt);
  now += absl::Milliseconds(1);
  EXPECT_EQ(limiter.Admit(now), 5);
  EXPECT_EQ(limiter.Admit(now), 0);
}

TEST(LogLimiterTest, AClockThatIsSetBackSilencesNothing) {
  LogLimiter limiter;
  for (int i = 0; i < 20; ++i) limiter.Admit(absl::UnixEpoch());
  EXPECT_EQ(limiter.Admit(absl::UnixEpoch() - absl::Hours(1)), 10);
}

}  // namespace
}  // namespace whit
