#include "runtime/engine/request_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <random>
#include <string>
#include <thread>
#include <utility>
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
  const uint64_t c = Submit(queue, Request(45));  // nor does this
  const uint64_t d = Submit(queue, Request(10));  // fits, and overtakes
  EXPECT_EQ(Numbers(queue.Take(kNow).started), (Vec{a, d}));
  EXPECT_EQ(queue.state().waiting, 2);
  EXPECT_EQ(queue.state().reserved_bytes, 70u);
  queue.Release(10);
  queue.Release(60);
  EXPECT_EQ(Numbers(queue.Take(kNow).started), (Vec{b, c}));
  EXPECT_EQ(queue.state().waiting, 0);
  EXPECT_EQ(queue.state().waiting_prompt_tokens, 0);
  EXPECT_EQ(queue.state().reserved_bytes, 95u);
}

TEST(RequestQueueTest, AClientHasNoMoreThanItsShareOfTheQueue) {
  RequestQueue queue(kLimits);
  const auto request = [](const std::string& client, int prompt_tokens, int64_t most) {
    QueuedRequest queued = Request(60, prompt_tokens);
    queued.request.client = client;
    queued.request.client_max_waiting_prompt_tokens = most;
    return queued;
  };
  const auto refused = [&](QueuedRequest queued) {
    EXPECT_TRUE(queue.TakeTicket().ok());
    const absl::Status status = queue.Submit(std::move(queued)).status();
    queue.ReturnTicket();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    return RejectionReason(status);
  };
  Submit(queue, request("a", 30, 10));  // runs at once: the share is one of the queue
  EXPECT_EQ(refused(request("a", 11, 10)), "client_queue_prompt_tokens");
  const uint64_t first = Submit(queue, request("a", 6, 10));
  EXPECT_EQ(refused(request("a", 5, 10)), "client_queue_prompt_tokens");
  Submit(queue, request("b", 20, 20));  // what others have does not count
  queue.Cancel(first);
  EXPECT_EQ(Numbers(queue.Take(kNow).cancelled), (Vec{first}));
  Submit(queue, request("a", 10, 10));
}

// A large request among an endless stream of small ones, each of which fits beside those that run.
TEST(RequestQueueTest, NobodyStarvesBehindSmallOnes) {
  RequestQueue queue({.reservable_bytes = 100,
                      .max_running_requests = 50,
                      .max_waiting_requests = 100,
                      .max_waiting_prompt_tokens = 1000});
  std::deque<size_t> running;
  for (int i = 0; i < 10; ++i) {
    Submit(queue, Request(10));
    running.push_back(10);
  }
  queue.Take(kNow);
  const uint64_t large = Submit(queue, Request(100));
  int overtook = 0, released = 0;
  for (bool started = false; !started;) {
    ASSERT_LT(++released, 40);
    queue.Release(running.front());
    running.pop_front();
    Submit(queue, Request(10));
    for (const QueuedRequest& request : queue.Take(kNow).started) {
      running.push_back(request.reservation_bytes);
      started |= request.number == large;
      overtook += request.number == large ? 0 : 1;
    }
  }
  EXPECT_EQ(overtook, kMaxOvertaken);
  // Those that ran when it came, and those that overtook it.
  EXPECT_EQ(released, 10 + kMaxOvertaken);
  EXPECT_EQ(queue.state().running, 1);
}

TEST(RequestQueueTest, OneWhoseDeadlineWouldComeFirstIsNotLetIn) {
  RequestQueue queue(kLimits);
  const RunningProgress progress = {.tokens_left = {1000}, .tokens_per_second = 10};
  EXPECT_TRUE(queue.TakeTicket().ok());
  QueuedRequest first = Request(100, 1, kNow + absl::Seconds(1));
  first.submitted = kNow;
  EXPECT_TRUE(queue.Submit(std::move(first), progress).ok()) << "it need not wait";
  EXPECT_TRUE(queue.TakeTicket().ok());
  for (const auto& [seconds, let_in] : {std::pair{40, false}, std::pair{60, true}}) {
    QueuedRequest queued = Request(100, 1, kNow + absl::Seconds(seconds));
    queued.submitted = kNow;
    const absl::Status status = queue.Submit(std::move(queued), progress).status();
    EXPECT_EQ(status.ok(), let_in) << status;
    EXPECT_EQ(RejectionReason(status), let_in ? "" : "deadline");
  }
  EXPECT_EQ(queue.state().tickets, 0);
  EXPECT_EQ(queue.state().waiting, 1);
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
  for (int i = 0; i < kMaxOvertaken; ++i) {
    Submit(queue, Request(40));
    queue.Release(40);
    queue.Take(kNow);
  }
  const uint64_t expiring = Submit(queue, Request(90, 1, kNow + absl::Seconds(1)));
  const uint64_t small = Submit(queue, Request(40));
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
