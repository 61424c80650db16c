// What the engine does with the KV cache: policies, rings, pressure.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/runtime/engine/engine_core_fixture.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

TEST_F(EngineCoreTest, TheCompletionTellsWhatThePagesHeld) {
  Client client;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(20), 14), client);
  const Completion completion = *Finish(client).completion;
  // The last token is chosen, but never run: 33 tokens in 3 tiles.
  const auto fp16 = static_cast<size_t>(Rung::kFp16);
  EXPECT_EQ(completion.kv.tokens_by_rung[fp16], 33);
  EXPECT_EQ(completion.kv.fp16_equivalent_bytes, 33 * model().kv_elements_per_token() * 2);
  EXPECT_EQ(completion.kv.bytes_by_rung[fp16], 48 * model().kv_elements_per_token() * 2);
  EXPECT_GT(completion.kv.true_bytes, completion.kv.bytes_by_rung[fp16]);  // metadata
  EXPECT_GT(completion.kv.mean_bits, 16.0 * 48 / 33);
}

TEST_F(EngineCoreTest, ARequestsPolicyDecidesItsRungs) {
  Client client;
  Request request = runtime_->GreedyRequest(runtime_->Prompt(400), 20);
  request.kv_policy = *ParsePrecisionPolicy("static:K4V4");
  Submit(request, client);
  const KvUsage kv = Finish(client).completion->kv;
  EXPECT_EQ(kv.tokens_by_rung[static_cast<size_t>(Rung::kFp16)], kTileTokens);  // the sink
  EXPECT_GT(kv.tokens_by_rung[static_cast<size_t>(Rung::kK4V4)], 300);
  double tokens = 0;
  for (double at_rung : kv.tokens_by_rung) tokens += at_rung;
  EXPECT_EQ(tokens, 419);
  EXPECT_LT(kv.true_bytes, kv.fp16_equivalent_bytes * 2 / 3);
}

TEST_F(EngineCoreTest, TheOperatorsRingHoldsTheNewestTokens) {
  options_.kv_ring = {.rung = Rung::kK8V4, .tokens = 64, .sink_rung = Rung::kK8V8};
  MakeCore(Limits());
  Client client;
  Request request = runtime_->GreedyRequest(runtime_->Prompt(400), 17);
  request.kv_policy = *ParsePrecisionPolicy("static:K4V4");
  Submit(request, client);
  const KvUsage kv = Finish(client).completion->kv;
  // 416 tokens: a page of the sink, the ring, and what has left it.
  EXPECT_EQ(kv.tokens_by_rung[static_cast<size_t>(Rung::kK8V8)], kTileTokens);
  EXPECT_EQ(kv.tokens_by_rung[static_cast<size_t>(Rung::kK8V4)], 64);
  EXPECT_EQ(kv.tokens_by_rung[static_cast<size_t>(Rung::kK4V4)], 416 - 64 - kTileTokens);
}

TEST_F(EngineCoreTest, SnapshotShowsWhatRuns) {
  EngineSnapshot snapshot = core_->snapshot();
  const int64_t all = snapshot.headroom_tokens_floor;
  EXPECT_EQ(snapshot.pool.capacity_bytes, options_.kv_cache_bytes);
  EXPECT_EQ(snapshot.capacity_tokens_floor, all);
  EXPECT_EQ(
      all, static_cast<int64_t>(snapshot.reservable_bytes /
                                (model().kv_elements_per_token() * 2 * kTileTokens) * kTileTokens));
  Client client;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(32), 32), client);
  Step();
  snapshot = core_->snapshot();
  EXPECT_EQ(snapshot.running, 1);
  EXPECT_EQ(snapshot.reserved_bytes, 64 * model().kv_elements_per_token() * 2);
  EXPECT_EQ(snapshot.pool.used_bytes, 32 * model().kv_elements_per_token() * 2);
  EXPECT_EQ(snapshot.fp16_equivalent_bytes, snapshot.pool.used_bytes);
  EXPECT_EQ(snapshot.headroom_tokens_floor, all - 64);
  EXPECT_EQ(snapshot.capacity_tokens_floor, all);
  EXPECT_EQ(snapshot.tokens_by_rung[static_cast<size_t>(Rung::kFp16)], 32);  // two full pages
  EXPECT_GT(snapshot.mean_bits, 16);
  Finish(client);
  snapshot = core_->snapshot();
  EXPECT_EQ(snapshot.running, 0);
  EXPECT_EQ(snapshot.headroom_tokens_floor, all);
  EXPECT_EQ(snapshot.mean_bits, 0);
}

// Random requests of all policies, far more than the pool holds: whoever is let in finishes, unless
// it is cancelled.
TEST_F(EngineCoreTest, EveryAdmittedRequestFinishesInATinyPool) {
  options_ = {.kv_cache_bytes = 14 * PagePool::kSlabBytes,
              .max_running_requests = 32,
              .max_waiting_requests = 8,
              .kv_floor = Rung::kK2V2};
  MakeCore(Limits());
  std::mt19937 rng(11);
  std::vector<std::unique_ptr<Client>> clients;
  std::vector<uint64_t> numbers;
  int most_running = 0, waited = 0;
  for (int step = 0; step < 1500; ++step) {
    if (queue_->state().waiting < options_.max_waiting_requests) {
      Request request = runtime_->GreedyRequest(
          runtime_->Prompt(1 + static_cast<int>(rng() % 250), rng() % 5), 1 + rng() % 150);
      const char* policies[] = {"adaptive", "adaptive:8", "static:K4V4", "rule", "fp16"};
      request.kv_policy = *ParsePrecisionPolicy(policies[rng() % 8 < 4 ? rng() % 2 : rng() % 5]);
      if (request.kv_policy.kind == PrecisionPolicySpec::Kind::kAdaptive && rng() % 3 == 0) {
        request.kv_floor = Rung::kK4V4;
      }
      request.ignore_eos = true;
      clients.push_back(std::make_unique<Client>());
      numbers.push_back(Submit(std::move(request), *clients.back()));
    }
    if (rng() % 40 == 0) queue_->Cancel(numbers[rng() % numbers.size()]);
    Step();
    if (HasFatalFailure()) FAIL() << "step " << step;
    most_running = std::max(most_running, queue_->state().running);
    waited += queue_->state().waiting > 0 ? 1 : 0;
  }
  int finished = 0;
  for (const auto& client : clients) {
    const Completion& completion = *Finish(*client).completion;
    EXPECT_TRUE(completion.reason == FinishReason::kLength ||
                completion.reason == FinishReason::kCancelled)
        << completion.status;
    finished += completion.reason == FinishReason::kLength ? 1 : 0;
  }
  EXPECT_GT(finished, 100);
  EXPECT_GT(waited, 1000);
  EXPECT_GT(most_running, 4);
  ExpectIdle();
}

// Requests that take nearly 8 bits while there is room are let in as far as 2 bits go.
TEST_F(EngineCoreTest, PressureMakesRoomForWhoWasLetInAtTheFloor) {
  options_.kv_cache_bytes = 24 * PagePool::kSlabBytes;
  options_.max_cached_prefixes = 0;
  MakeCore(Limits());
  const auto fitting = [&](const char* policy) {
    const KvTerms terms = TermsOf(*ParsePrecisionPolicy(policy), Rung::kK2V2, options_.kv_ring);
    return Limits().reservable_bytes / ReservationBytes(terms, model(), 200, 900);
  };
  EXPECT_GT(fitting("adaptive"), 2 * fitting("fp16"));
  std::vector<Client> clients(fitting("adaptive"));
  for (size_t i = 0; i < clients.size(); ++i) {
    Request request = runtime_->GreedyRequest(runtime_->Prompt(200, i), 700);
    request.kv_policy = *ParsePrecisionPolicy("adaptive:8");
    request.kv_floor = Rung::kK2V2;
    request.ignore_eos = true;
    Submit(std::move(request), clients[i]);
  }
  EXPECT_EQ(queue_->state().running, static_cast<int>(clients.size()));
  EXPECT_EQ(core_->snapshot().ceiling, Rung::kFp16);
  Rung ceiling = Rung::kFp16;
  while (queue_->state().running == static_cast<int>(clients.size())) {
    Step();
    ASSERT_FALSE(HasFatalFailure());
    ceiling = std::min(ceiling, core_->snapshot().ceiling);
  }
  EXPECT_LT(ceiling, Rung::kK8V8);
  int64_t demotions = 0;
  for (const auto& row : core_->snapshot().demotions_total) {
    for (int64_t count : row) demotions += count;
  }
  EXPECT_GT(demotions, 0);
  for (Client& client : clients) EXPECT_TRUE(Finish(client).completion->status.ok());
  ExpectIdle();
  EXPECT_EQ(core_->snapshot().ceiling, Rung::kFp16);
}

// Reservations make this impossible; if it happens nevertheless, it is that request's end and no
// more.
TEST_F(EngineCoreTest, WithoutPagesARequestFailsAndTheEngineLivesOn) {
  options_.kv_cache_bytes = PagePool::kSlabBytes;
  AdmissionLimits limits = Limits();
  limits.reservable_bytes = 100 * PagePool::kSlabBytes;
  MakeCore(limits);
  Client small, large;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(40), 30), small);
  const uint64_t number = Submit(runtime_->GreedyRequest(runtime_->Prompt(1900), 30), large);
  while (!large.Poll().completion.has_value() || !small.Poll().completion.has_value()) {
    core_->Step(kNow);
  }
  const Client::Received& failed = large.Poll();
  EXPECT_EQ(failed.completion->reason, FinishReason::kError);
  EXPECT_EQ(failed.completion->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(failed.completion->status.message()), HasSubstr(std::to_string(number)));
  EXPECT_EQ(small.Poll().ids(), runtime_->ReferenceGreedy(runtime_->Prompt(40), 30));
  ExpectIdle();
}

}  // namespace
}  // namespace whit
