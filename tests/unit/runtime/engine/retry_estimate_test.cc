#include "runtime/engine/retry_estimate.h"

#include <gtest/gtest.h>

#include "runtime/engine/admission.h"

namespace whit {
namespace {

constexpr AdmissionLimits kLimits = {
    .max_running_requests = 2, .max_waiting_requests = 4, .max_waiting_prompt_tokens = 1000};

TEST(StartsUntilRoomTest, AFullQueueNeedsOnePlace) {
  EXPECT_EQ(StartsUntilRoom(kLimits, {.waiting = 4}, {}), 1);
  // Callers with a ticket come first.
  EXPECT_EQ(StartsUntilRoom(kLimits, {.waiting = 4, .tickets = 2}, {}), 3);
  EXPECT_EQ(StartsUntilRoom(kLimits, {.waiting = 1}, {}), 1);
}

TEST(StartsUntilRoomTest, PromptTokensLeaveTheQueueWithTheirRequests) {
  const AdmissionState state = {.waiting = 3, .waiting_prompt_tokens = 900};
  EXPECT_EQ(StartsUntilRoom(kLimits, state, {.prompt_tokens = 101}), 1);
  EXPECT_EQ(StartsUntilRoom(kLimits, state, {.prompt_tokens = 400}), 1);
  EXPECT_EQ(StartsUntilRoom(kLimits, state, {.prompt_tokens = 401}), 2);
  EXPECT_EQ(StartsUntilRoom(kLimits, state, {.prompt_tokens = 1000}), 3);
  // More than may ever wait.
  EXPECT_EQ(StartsUntilRoom(kLimits, state, {.prompt_tokens = 1001}), 4);
  EXPECT_EQ(StartsUntilRoom(kLimits, {}, {.prompt_tokens = 1001}), 1);
}

TEST(EstimateRetryAfterTest, IsTheTimeOfWhatMustEndFirst) {
  const RunningProgress progress = {.tokens_left = {300, 100, 200}, .tokens_per_second = 150};
  // Each of the three makes 50 tokens a second.
  EXPECT_EQ(EstimateRetryAfter(1, progress), absl::Seconds(2));
  EXPECT_EQ(EstimateRetryAfter(2, progress), absl::Seconds(4));
  EXPECT_EQ(EstimateRetryAfter(3, progress), absl::Seconds(6));
  EXPECT_EQ(EstimateRetryAfter(4, progress), absl::Seconds(6 + 2));
}

TEST(EstimateWaitTest, HasNoBounds) {
  EXPECT_EQ(EstimateWait(1, {.tokens_left = {6000}, .tokens_per_second = 100}), absl::Minutes(1));
  EXPECT_EQ(EstimateWait(1, {.tokens_left = {1}, .tokens_per_second = 100}),
            absl::Milliseconds(10));
  EXPECT_EQ(EstimateWait(1, {.tokens_left = {5}}), absl::ZeroDuration());
  EXPECT_EQ(EstimateWait(1, {.tokens_left = {}, .tokens_per_second = 9}), absl::ZeroDuration());
}

TEST(EstimateRetryAfterTest, StaysWithinItsBounds) {
  EXPECT_EQ(EstimateRetryAfter(1, {}), kDefaultRetryAfter);
  EXPECT_EQ(EstimateRetryAfter(1, {.tokens_left = {5}}), kDefaultRetryAfter);
  EXPECT_EQ(EstimateRetryAfter(1, {.tokens_left = {}, .tokens_per_second = 9}), kDefaultRetryAfter);
  EXPECT_EQ(EstimateRetryAfter(1, {.tokens_left = {0}, .tokens_per_second = 9}), kMinRetryAfter);
  EXPECT_EQ(EstimateRetryAfter(1, {.tokens_left = {int64_t{1} << 62}, .tokens_per_second = 1e-9}),
            kMaxRetryAfter);
  EXPECT_EQ(EstimateRetryAfter(int64_t{1} << 40, {.tokens_left = {9}, .tokens_per_second = 9}),
            kMaxRetryAfter);
}

TEST(RetryAfterTest, TravelsWithTheStatus) {
  absl::Status status = absl::ResourceExhaustedError("full");
  EXPECT_EQ(RetryAfter(status), std::nullopt);
  SetRetryAfter(absl::Milliseconds(1234), &status);
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(1234));
}

}  // namespace
}  // namespace whit
