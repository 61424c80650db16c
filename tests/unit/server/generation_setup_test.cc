#include "server/generation_setup.h"

#include "gtest/gtest.h"

namespace whit {
namespace {

TEST(EngineDeadlineTest, LeavesTimeForTheLastMessage) {
  const absl::Time start = absl::UnixEpoch();
  EXPECT_EQ(EngineDeadline(start, start + absl::Seconds(1)), start + absl::Milliseconds(950));
  EXPECT_EQ(EngineDeadline(start, start + absl::Hours(1)),
            start + absl::Hours(1) - absl::Milliseconds(200));
}

TEST(EngineDeadlineTest, IsTheDeadlineItselfWhereThereIsNoTime) {
  const absl::Time start = absl::UnixEpoch();
  EXPECT_EQ(EngineDeadline(start, start - absl::Seconds(1)), start - absl::Seconds(1));
  EXPECT_EQ(EngineDeadline(start, absl::InfiniteFuture()), absl::InfiniteFuture());
}

}  // namespace
}  // namespace whit
