#include "runtime/engine/request_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

namespace whit {
namespace {

constexpr absl::Time kNow = absl::UnixEpoch();
constexpr AdmissionLimits kLimits = {.reservable_bytes = 100,
                                     .max_running_requests = 2,
                                     .max_waiting_requests = 3,
                                     .max_waiting_prompt_tokens = 50};

QueuedRequest Request(size_t bytes, int prompt_tokens = 1,
                      absl::Time deadline = absl::InfiniteFuture()) {
  QueuedRequest queued;
  queued.request.prompt.assign(prompt_tokens, 0);
  queued.request.deadline = deadline;
  queued.reservation_bytes = bytes;
  return queued;
}

uint64_t Submit(RequestQueue& queue, QueuedRequest request) {
  EXPECT_TRUE(queue.TakeTicket().ok());
  const auto number = queue.Submit(std::move(request));
  EXPECT_TRUE(number.ok()) << number.status();
  return number.value_or(0);
}

std::vector<uint64_t> Numbers(const std::vector<QueuedRequest>& requests) {
  std::vector<uint64_t> numbers;
  for (const QueuedRequest& request : requests) numbers.push_back(request.number);
  return numbers;
}

using Vec = std::vector<uint64_t>;

TEST(RequestQueueTest, StartsInOrderOfArrivalAsFarAsBytesAndPlacesGo) {
  RequestQueue queue(kLimits);
  const uint64_t a = Submit(queue, Request(60));
  const uint64_t b = Submit(queue, Request(50));  // does not fit beside a
  const uint64_t c = Submit(queue, Request(10));  // would fit, but stands behind b
  EXPECT_EQ(Numbers(queue.Take(kNow).started), (Vec{a}));
  EXPECT_EQ(queue.state().waiting, 2);
  EXPECT_EQ(queue.state().reserved_bytes, 60u);
  queue.Release(60);
  EXPECT_EQ(Numbers(queue.Take(kNow).started), (Vec{b, c}));
  EXPECT_EQ(queue.state().waiting, 0);
  EXPECT_EQ(queue.state().waiting_prompt_tokens, 0);
  EXPECT_EQ(queue.state().reserved_bytes, 60u);
}

TEST(RequestQueueTest, TicketsCountUntilTheyAreUsedOrReturned) {
  RequestQueue queue(kLimits);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(queue.TakeTicket().ok());
  EXPECT_EQ(queue.TakeTicket().code(), absl::StatusCode::kResourceExhausted);
  queue.ReturnTicket();
  EXPECT_TRUE(queue.TakeTicket().ok());
  EXPECT_TRUE(queue.Submit(Request(1)).ok());
  EXPECT_EQ(queue.state().tickets, 4);
  // Refused: the ticket is still out.
  EXPECT_FALSE(queue.Submit(Request(101)).ok());
  EXPECT_EQ(queue.state().tickets, 4);
}

TEST(RequestQueueTest, TheQueueIsBounded) {
  RequestQueue queue(kLimits);
  Submit(queue, Request(100));
  Submit(queue, Request(1, 20));
  EXPECT_TRUE(queue.TakeTicket().ok());
  EXPECT_EQ(RejectionReason(queue.Submit(Request(1, 31)).status()), "queue_prompt_tokens");
  queue.ReturnTicket();
  Submit(queue, Request(1, 20));
  Submit(queue, Request(1, 10));
  EXPECT_EQ(RejectionReason(queue.TakeTicket()), "queue_full");
  EXPECT_EQ(queue.state().waiting, 3);
  EXPECT_EQ(queue.state().waiting_prompt_tokens, 50);
}

TEST(RequestQueueTest, CancelledAndExpiredLeaveTheQueueAndLetOthersPass) {
  RequestQueue queue(kLimits);
  const uint64_t running = Submit(queue, Request(60));
  const uint64_t blocking = Submit(queue, Request(90));
  const uint64_t expiring = Submit(queue, Request(90, 1, kNow + absl::Seconds(1)));
  const uint64_t small = Submit(queue, Request(40));
  EXPECT_EQ(Numbers(queue.Take(kNow).started), (Vec{running}));
  queue.Cancel(blocking);
  queue.Cancel(running);
  const RequestQueue::Intake intake = queue.Take(kNow + absl::Seconds(1));
  EXPECT_EQ(Numbers(intake.cancelled), (Vec{blocking}));
  EXPECT_EQ(Numbers(intake.expired), (Vec{expiring}));
  EXPECT_EQ(Numbers(intake.started), (Vec{small}));
  EXPECT_TRUE(intake.cancellations.contains(running));
  EXPECT_TRUE(queue.Take(kNow).cancellations.empty());
}

TEST(RequestQueueTest, DrainingRefusesTicketsAndRequests) {
  RequestQueue queue(kLimits);
  EXPECT_TRUE(queue.TakeTicket().ok());
  queue.StartDraining();
  EXPECT_EQ(queue.Submit(Request(1)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(queue.TakeTicket().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(queue.state().draining);
}

TEST(RequestQueueTest, IsIdleOnceAllCompletionsAreOut) {
  RequestQueue queue(kLimits);
  EXPECT_TRUE(queue.WaitUntilIdle(absl::InfinitePast()));
  Submit(queue, Request(1));
  EXPECT_FALSE(queue.WaitUntilIdle(absl::InfinitePast()));
  queue.Take(kNow);
  queue.Release(1);
  EXPECT_FALSE(queue.WaitUntilIdle(absl::InfinitePast())) << "its client has not heard yet";
  queue.Completed();
  EXPECT_TRUE(queue.WaitUntilIdle(absl::InfinitePast()));
}

TEST(RequestQueueTest, CancellationsOfNobodyAreNotKept) {
  RequestQueue queue(kLimits);
  queue.Cancel(5);
  Submit(queue, Request(1));
  EXPECT_TRUE(queue.Take(kNow).cancellations.empty());
}

TEST(RequestQueueTest, BooksBalanceUnderThreads) {
  constexpr int kThreads = 3, kRequestsEach = 2000;
  RequestQueue queue(kLimits);
  std::atomic<int> submitted{0};
  std::thread engine([&] {
    std::vector<size_t> running;
    int completed = 0;
    while (queue.AwaitWork()) {
      RequestQueue::Intake intake = queue.Take(absl::Now());
      for (const QueuedRequest& request : intake.started) {
        running.push_back(request.reservation_bytes);
      }
      const AdmissionState state = queue.state();
      EXPECT_LE(state.reserved_bytes, kLimits.reservable_bytes);
      EXPECT_LE(state.running, kLimits.max_running_requests);
      EXPECT_LE(state.waiting, kLimits.max_waiting_requests);
      for (size_t i = 0; i < intake.cancelled.size(); ++i) queue.Completed();
      completed += static_cast<int>(intake.cancelled.size() + running.size());
      for (size_t bytes : running) {
        queue.Release(bytes);
        queue.Completed();
      }
      running.clear();
    }
    EXPECT_EQ(completed, submitted.load());
  });
  std::vector<std::thread> callers;
  for (int t = 0; t < kThreads; ++t) {
    callers.emplace_back([&, t] {
      std::mt19937 rng(t);
      for (int i = 0; i < kRequestsEach; ++i) {
        if (!queue.TakeTicket().ok()) continue;
        const auto number = queue.Submit(Request(1 + rng() % 100, 1 + rng() % 20));
        if (!number.ok()) {
          queue.ReturnTicket();
          continue;
        }
        submitted.fetch_add(1);
        if (rng() % 2 == 0) queue.Cancel(*number);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_TRUE(queue.WaitUntilIdle(absl::InfiniteFuture()));
  const AdmissionState state = queue.state();
  EXPECT_EQ(state.reserved_bytes, 0u);
  EXPECT_EQ(state.running, 0);
  EXPECT_EQ(state.waiting, 0);
  EXPECT_EQ(state.waiting_prompt_tokens, 0);
  EXPECT_EQ(state.tickets, 0);
  queue.Stop();
  engine.join();
}

}  // namespace
}  // namespace whit
