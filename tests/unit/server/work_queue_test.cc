#include "server/work_queue.h"

#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::ElementsAre;

TEST(WorkQueueTest, RunsInOrderAndFinishesBeforeItGoes) {
  std::vector<int> ran;
  {
    WorkQueue queue("test");
    for (int i = 0; i < 4; ++i) queue.Post([&ran, i] { ran.push_back(i); });
  }
  EXPECT_THAT(ran, ElementsAre(0, 1, 2, 3));
}

TEST(WorkQueueTest, TryPostRefusesWhenTooMuchWaits) {
  absl::Notification started, go_on;
  int ran = 0;
  {
    WorkQueue queue("test");
    queue.Post([&] {
      started.Notify();
      go_on.WaitForNotification();
    });
    started.WaitForNotification();
    EXPECT_TRUE(queue.TryPost([&] { ++ran; }, 2));
    EXPECT_TRUE(queue.TryPost([&] { ++ran; }, 2));
    EXPECT_FALSE(queue.TryPost([&] { ran += 100; }, 2));
    go_on.Notify();
  }
  EXPECT_EQ(ran, 2);
}

TEST(WorkQueueTest, TakesWorkThatOnlyMoves) {
  int value = 0;
  {
    WorkQueue queue("test");
    queue.Post([&value, held = std::make_unique<int>(7)] { value = *held; });
  }
  EXPECT_EQ(value, 7);
}

}  // namespace
}  // namespace whit
