// The engine on its own thread, used as the server uses it.
#include "runtime/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/engine/admission.h"
#include "runtime/engine/retry_estimate.h"
#include "tests/unit/runtime/engine/tiny_runtime.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { runtime_ = new TinyRuntime(); }
  static void TearDownTestSuite() {
    delete runtime_;
    runtime_ = nullptr;
  }

  std::unique_ptr<Engine> MakeEngine(EngineObserver observer = {}) {
    auto engine =
        Engine::Create(options_, *runtime_->model, *runtime_->tokenizer, std::move(observer));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  // Steps of at least a millisecond: a long request is not done before the test has had its say.
  std::unique_ptr<Engine> MakeSlowEngine() {
    return MakeEngine({.on_step = [](const StepReport&) { absl::SleepFor(absl::Milliseconds(1)); },
                       .on_completion = {}});
  }

  static absl::StatusOr<uint64_t> Submit(Engine& engine, Request request, const Client& client) {
    absl::StatusOr<Engine::Ticket> ticket = engine.Admit();
    if (!ticket.ok()) return ticket.status();
    return engine.Submit(*std::move(ticket), std::move(request), client.sink());
  }

  static TinyRuntime* runtime_;
  EngineOptions options_ = {.kv_cache_bytes = size_t{4} << 20};
};
TinyRuntime* EngineTest::runtime_ = nullptr;

TEST_F(EngineTest, ManyClientsAtOnceGetWhatTheyWouldGetAlone) {
  constexpr int kClients = 24;
  std::vector<std::vector<int32_t>> expected;
  for (uint32_t i = 0; i < kClients; ++i) {
    expected.push_back(runtime_->ReferenceGreedy(runtime_->Prompt(3 + 11 * i, i), 10 + i));
  }
  const auto engine = MakeEngine();
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kClients; ++i) {
    threads.emplace_back([&, i] {
      Client client;
      ASSERT_TRUE(
          Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(3 + 11 * i, i), 10 + i), client)
              .ok());
      EXPECT_EQ(client.Wait().ids(), expected[i]) << i;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(engine->snapshot().pool.used_bytes, 0u);
}

TEST_F(EngineTest, PagesAreBackBeforeTheCompletionIsDelivered) {
  const auto engine = MakeSlowEngine();
  for (int i = 0; i < 50; ++i) {
    Client client;
    const auto number =
        Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(40), 2000), client);
    ASSERT_TRUE(number.ok());
    client.WaitForTokens(i % 5);
    engine->Cancel(*number);
    EXPECT_EQ(client.Wait().completion->reason, FinishReason::kCancelled);
    const EngineSnapshot snapshot = engine->snapshot();
    EXPECT_EQ(snapshot.pool.used_bytes, 0u);
    EXPECT_EQ(snapshot.reserved_bytes, 0u);
    EXPECT_EQ(snapshot.running, 0);
  }
}

TEST_F(EngineTest, NothingRemainsOfAThousandRequestsStartedAndCancelledAtRandom) {
  constexpr int kThreads = 4, kRequestsEach = 250;
  options_.kv_cache_bytes = 11 * PagePool::kSlabBytes;
  options_.max_running_requests = 2;
  options_.max_waiting_requests = 1;
  std::atomic<int> completions{0}, submitted{0};
  const auto engine = MakeEngine(
      {.on_step = {}, .on_completion = [&](const Completion&) { completions.fetch_add(1); }});
  std::atomic<bool> done{false};
  std::thread scraper([&] {
    while (!done.load()) {
      const EngineSnapshot snapshot = engine->snapshot();
      ASSERT_LE(snapshot.pool.used_bytes, snapshot.reserved_bytes);
      ASSERT_LE(snapshot.reserved_bytes, snapshot.pool.capacity_bytes);
      ASSERT_EQ(
          snapshot.pool.used_bytes + snapshot.pool.reclaimable_bytes + snapshot.pool.free_bytes,
          snapshot.pool.capacity_bytes);
      ASSERT_LE(snapshot.running, options_.max_running_requests);
      ASSERT_LE(snapshot.waiting, options_.max_waiting_requests);
      ASSERT_GE(snapshot.headroom_tokens_floor, 0);
      absl::SleepFor(absl::Milliseconds(1));
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 rng(t);
      for (int i = 0; i < kRequestsEach; ++i) {
        Client client;
        Request request = runtime_->GreedyRequest(
            runtime_->Prompt(1 + static_cast<int>(rng() % 300), rng()), 1 + rng() % 40);
        if (rng() % 8 == 0) request.deadline = absl::Now() + absl::Milliseconds(rng() % 20);
        const auto number = Submit(*engine, std::move(request), client);
        if (!number.ok()) {
          ASSERT_EQ(number.status().code(), absl::StatusCode::kResourceExhausted);
          continue;
        }
        submitted.fetch_add(1);
        if (rng() % 4 != 0) {
          client.WaitForTokens(rng() % 6);
          engine->Cancel(*number);
        }
        client.Wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  done.store(true);
  scraper.join();
  EXPECT_TRUE(engine->WaitUntilIdle(absl::InfiniteFuture()));
  EXPECT_EQ(completions.load(), submitted.load());
  EXPECT_GT(submitted.load(), 300);
  const EngineSnapshot snapshot = engine->snapshot();
  EXPECT_EQ(snapshot.pool.used_bytes, 0u);
  EXPECT_EQ(snapshot.reserved_bytes, 0u);
  EXPECT_EQ(snapshot.waiting_prompt_tokens, 0);

  // What remains is what the cache holds, and all of it can be had, by a request that fills the
  // pool.
  EXPECT_GT(snapshot.cached_prefixes, 1);
  EXPECT_GT(snapshot.pool.reclaimable_bytes, 0u);
  Client client;
  const auto all = static_cast<int>(snapshot.headroom_tokens_floor);
  ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(all - 1), 1), client).ok());
  EXPECT_TRUE(client.Wait().completion->status.ok()) << client.Poll().completion->status;
  EXPECT_EQ(engine->snapshot().pool.used_bytes, 0u);
  EXPECT_EQ(engine->snapshot().cached_prefixes, 1);  // itself
}

TEST_F(EngineTest, TheQueueIsBoundedByRequestsAndByPromptTokens) {
  options_.max_running_requests = 1;
  options_.max_waiting_requests = 2;
  options_.max_waiting_prompt_tokens = 100;
  const auto engine = MakeSlowEngine();
  Client running, first, second, refused;
  const auto number = Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(5), 2000), running);
  ASSERT_TRUE(number.ok()) << number.status();
  running.WaitForTokens(1);  // it waits no more
  ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(60), 2), first).ok());
  absl::Status status =
      Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(60), 2), refused).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RejectionReason(status), "queue_prompt_tokens");
  EXPECT_TRUE(RetryAfter(status).has_value());
  ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(40), 2), second).ok());
  status = Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(1), 2), refused).status();
  EXPECT_EQ(RejectionReason(status), "queue_full");
  // Nearly 2,000 tokens are left, at no more than 1,000 a second.
  running.WaitForTokens(5);
  status = engine->Admit().status();
  EXPECT_EQ(RejectionReason(status), "queue_full");
  EXPECT_GT(RetryAfter(status), kDefaultRetryAfter);
  EXPECT_EQ(engine->snapshot().waiting, 2);
  EXPECT_EQ(engine->snapshot().waiting_prompt_tokens, 100);
  engine->Cancel(*number);
  EXPECT_EQ(first.Wait().completion->reason, FinishReason::kLength);
  EXPECT_EQ(second.Wait().completion->reason, FinishReason::kLength);
  EXPECT_TRUE(refused.Poll().tokens.empty());
  EXPECT_FALSE(refused.Poll().completion.has_value());
}

TEST_F(EngineTest, ATicketIsGivenBackWhenItDiesUnused) {
  options_.max_running_requests = 1;
  options_.max_waiting_requests = 0;
  const auto engine = MakeEngine();
  {
    absl::StatusOr<Engine::Ticket> ticket = engine->Admit();
    ASSERT_TRUE(ticket.ok());
    EXPECT_FALSE(engine->Admit().ok());
    // Moving keeps it alive once.
    const Engine::Ticket moved = *std::move(ticket);
    EXPECT_FALSE(engine->Admit().ok());
  }
  Client client;
  Request bad = runtime_->GreedyRequest({}, 1);
  EXPECT_EQ(Submit(*engine, bad, client).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest({5}, 3), client).ok());
  EXPECT_EQ(client.Wait().tokens.size(), 3u);
}

TEST_F(EngineTest, WhatCanNeverFitIsRefusedWithTheLimit) {
  options_.kv_cache_bytes = 8 * PagePool::kSlabBytes;
  const auto engine = MakeEngine();
  Client client;
  const absl::Status status =
      Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(1000), 1000), client).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(PagePool::kSlabBytes)));
}

// Of a request that waits, see EngineCoreTest: here, one that others have gone before is refused
// once their pace is known, which is a matter of time.
TEST_F(EngineTest, ADeadlineEndsARunningRequest) {
  const auto engine = MakeSlowEngine();
  Client client;
  Request request = runtime_->GreedyRequest(runtime_->Prompt(5), 2000);
  request.deadline = absl::Now() + absl::Milliseconds(500);
  ASSERT_TRUE(Submit(*engine, request, client).ok());
  EXPECT_EQ(client.Wait().completion->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(absl::Now(), request.deadline);
}

TEST_F(EngineTest, DrainingFinishesWhatRunsAndRefusesTheRest) {
  const auto engine = MakeSlowEngine();
  Client running, late;
  ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(9), 100), running).ok());
  engine->StartDraining();
  EXPECT_TRUE(engine->snapshot().draining);
  EXPECT_EQ(Submit(*engine, runtime_->GreedyRequest({1}, 1), late).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine->WaitUntilIdle(absl::InfiniteFuture()));
  const Client::Received& received = running.Poll();  // no more waiting: it is all there
  ASSERT_TRUE(received.completion.has_value());
  EXPECT_EQ(received.completion->reason, FinishReason::kLength);
  EXPECT_EQ(received.tokens.size(), 100u);
}

TEST_F(EngineTest, WaitUntilIdleGivesUpAtItsDeadline) {
  const auto engine = MakeSlowEngine();
  Client client;
  const auto number = Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(9), 2000), client);
  ASSERT_TRUE(number.ok());
  EXPECT_FALSE(engine->WaitUntilIdle(absl::Now()));
  engine->Cancel(*number);
  EXPECT_TRUE(engine->WaitUntilIdle(absl::InfiniteFuture()));
}

TEST_F(EngineTest, DestructionCancelsWhatIsLeft) {
  options_.max_running_requests = 1;
  Client running, waiting;
  {
    const auto engine = MakeSlowEngine();
    ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(9), 2000), running).ok());
    ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(9), 2000), waiting).ok());
  }
  EXPECT_EQ(running.Poll().completion->reason, FinishReason::kCancelled);
  EXPECT_EQ(waiting.Poll().completion->reason, FinishReason::kCancelled);
}

TEST_F(EngineTest, TimingsAreInOrder) {
  const auto engine = MakeEngine();
  Client client;
  ASSERT_TRUE(Submit(*engine, runtime_->GreedyRequest(runtime_->Prompt(200), 20), client).ok());
  const Completion completion = *client.Wait().completion;
  EXPECT_GE(completion.queue_time, absl::ZeroDuration());
  EXPECT_GT(completion.prefill_time, absl::ZeroDuration());
  EXPECT_GT(completion.decode_time, absl::ZeroDuration());
  EXPECT_EQ(completion.time_to_first_token, completion.queue_time + completion.prefill_time);
}

TEST_F(EngineTest, SeedsOfTheirOwnDiffer) {
  const auto engine = MakeEngine();
  Request request = runtime_->GreedyRequest(runtime_->Prompt(5), 30);
  request.sampling.temperature = 5;
  Client a, b;
  ASSERT_TRUE(Submit(*engine, request, a).ok());
  ASSERT_TRUE(Submit(*engine, request, b).ok());
  EXPECT_NE(a.Wait().ids(), b.Wait().ids());
}

TEST_F(EngineTest, OptionsOutOfRangeAreNamed) {
  const auto error = [&](EngineOptions options) {
    return std::string(
        Engine::Create(options, *runtime_->model, *runtime_->tokenizer).status().message());
  };
  EXPECT_THAT(error({.max_running_requests = 0}), HasSubstr("max_running_requests is 0"));
  EXPECT_THAT(error({.max_running_requests = 600}), HasSubstr("max_running_requests is 600"));
  EXPECT_THAT(error({.max_step_tokens = 513}), HasSubstr("max_step_tokens is 513"));
  EXPECT_THAT(error({.max_waiting_requests = -1}), HasSubstr("max_waiting_requests is -1"));
  EXPECT_THAT(error({.prefill_chunk_tokens = 0}), HasSubstr("prefill_chunk_tokens is 0"));
  EXPECT_THAT(error({.kv_cache_bytes = 1000}), HasSubstr("1000"));
  EXPECT_THAT(error({.kv_ring = {.tokens = 40}}), HasSubstr("kv_ring.tokens: 40 is no multiple"));
  EXPECT_THAT(error({.kv_target_bits = 2}), HasSubstr("kv_target_bits is 2"));
  EXPECT_THAT(error({.kv_policy = *ParsePrecisionPolicy("learned")}), HasSubstr("whit-calibrate"));
}

TEST_F(EngineTest, APolicyThatLacksItsFileIsRefusedWhenItIsAskedFor) {
  const auto engine = MakeEngine();
  Client client;
  Request request = runtime_->GreedyRequest(runtime_->Prompt(20), 5);
  request.kv_policy = *ParsePrecisionPolicy("static-allocated:3");
  const absl::Status status = Submit(*engine, request, client).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'sensitivities'"));
  request.kv_policy = *ParsePrecisionPolicy("adaptive");
  ASSERT_TRUE(Submit(*engine, request, client).ok());
  EXPECT_TRUE(client.Wait().completion->status.ok());
}

}  // namespace
}  // namespace whit
