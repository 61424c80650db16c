// The engine stepped by hand: what happens between which steps is the test's to decide.
#include "runtime/engine/engine_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/utf8.h"
#include "tests/unit/runtime/engine/tiny_runtime.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

constexpr absl::Time kNow = absl::UnixEpoch();

class EngineCoreTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { runtime_ = new TinyRuntime(); }
  static void TearDownTestSuite() {
    delete runtime_;
    runtime_ = nullptr;
  }

  void SetUp() override { MakeCore(Limits()); }

  AdmissionLimits Limits() const {
    return {.reservable_bytes = PagePool::UsableBytes(options_.kv_cache_bytes),
            .max_running_requests = options_.max_running_requests,
            .max_waiting_requests = options_.max_waiting_requests,
            .max_waiting_prompt_tokens = options_.max_waiting_prompt_tokens};
  }

  void MakeCore(const AdmissionLimits& limits) {
    auto pool = *PagePool::Create(
        {.capacity_bytes = options_.kv_cache_bytes, .head_dim = model().head_dim});
    core_.reset();
    queue_ = std::make_unique<RequestQueue>(limits);
    EngineObserver observer = {.on_step =
                                   [this](const StepReport& report) {
                                     ++reports_;
                                     prompt_tokens_ += report.prompt_tokens;
                                     generated_tokens_ += report.generated_tokens;
                                     latencies_ +=
                                         static_cast<int>(report.inter_token_latencies.size());
                                   },
                               .on_completion = [this](const Completion&) { ++completions_; }};
    core_ = std::make_unique<EngineCore>(options_, *runtime_->model, *runtime_->tokenizer,
                                         std::move(pool), *queue_, std::move(observer));
  }

  uint64_t Submit(Request request, Client& client) {
    EXPECT_TRUE(queue_->TakeTicket().ok());
    if (!request.sampling.seed.has_value()) request.sampling.seed = 1;
    QueuedRequest queued;
    const int64_t tokens = static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens;
    queued.terms =
        TermsOf(request.kv_policy, request.kv_floor.value_or(options_.kv_floor), options_.kv_ring);
    queued.reservation_bytes = ReservationBytes(
        queued.terms, model(), static_cast<int64_t>(request.prompt.size()), tokens);
    queued.policy = MakePrecisionPolicy(request.kv_policy, options_.policy_file).value();
    queued.submitted = kNow;
    queued.request = std::move(request);
    queued.sink = client.sink();
    const absl::StatusOr<uint64_t> number = queue_->Submit(std::move(queued));
    EXPECT_TRUE(number.ok()) << number.status();
    return number.value_or(0);
  }

  void Step(absl::Time now = kNow) {
    core_->Step(now);
    const absl::Status status = core_->pool().CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
    const EngineSnapshot snapshot = core_->snapshot();
    ASSERT_LE(FootprintBytes(snapshot.pool, {}, model().head_dim), snapshot.reservable_bytes);
    ASSERT_LE(snapshot.reserved_bytes, snapshot.reservable_bytes);
  }

  const Client::Received& Finish(Client& client) {
    for (int i = 0; i < 5000 && !client.Poll().completion.has_value(); ++i) Step();
    EXPECT_TRUE(client.Poll().completion.has_value());
    return client.Poll();
  }

  // Nobody holds anything but the prefix cache.
  void ExpectIdle() {
    EXPECT_EQ(core_->pool().stats().used_bytes, 0u);
    EXPECT_EQ(queue_->state().reserved_bytes, 0u);
    EXPECT_EQ(queue_->state().running, 0);
    EXPECT_EQ(queue_->state().waiting, 0);
  }

  static const ModelConfig& model() { return runtime_->model->config(); }

  static TinyRuntime* runtime_;
  EngineOptions options_ = {.kv_cache_bytes = size_t{4} << 20};
  std::unique_ptr<RequestQueue> queue_;
  std::unique_ptr<EngineCore> core_;
  int reports_ = 0, prompt_tokens_ = 0, generated_tokens_ = 0, latencies_ = 0, completions_ = 0;
};
TinyRuntime* EngineCoreTest::runtime_ = nullptr;

TEST_F(EngineCoreTest, StreamsWhatAPlainLoopOverTheModelGives) {
  for (int length : {1, 2, 15, 16, 17, 100, 600}) {
    Client client;
    const std::vector<int32_t> prompt = runtime_->Prompt(length);
    Submit(runtime_->GreedyRequest(prompt, 40), client);
    const Client::Received& received = Finish(client);
    const std::vector<int32_t> expected = runtime_->ReferenceGreedy(prompt, 40);
    EXPECT_EQ(received.ids(), expected) << length;
    EXPECT_EQ(received.text, runtime_->Text(expected));
    EXPECT_EQ(received.completion->reason, FinishReason::kLength);
    EXPECT_TRUE(received.completion->status.ok());
    EXPECT_EQ(received.completion->prompt_tokens, length);
    EXPECT_EQ(received.completion->completion_tokens, 40);
    ExpectIdle();
  }
}

TEST_F(EngineCoreTest, ATokenIsDeliveredInTheStepThatMadeIt) {
  Client client;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(10), 3), client);
  for (size_t step = 1; step <= 3; ++step) {
    EXPECT_FALSE(client.Poll().completion.has_value());
    Step();
    EXPECT_EQ(client.Poll().tokens.size(), step);
  }
  EXPECT_TRUE(client.Poll().completion.has_value());
  ExpectIdle();
}

TEST_F(EngineCoreTest, ReportsSumUp) {
  Client a, b;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(700), 5), a);
  Submit(runtime_->GreedyRequest(runtime_->Prompt(20, 2), 9), b);
  Finish(a);
  Finish(b);
  EXPECT_EQ(prompt_tokens_, 720);
  EXPECT_EQ(generated_tokens_, 14);
  EXPECT_EQ(latencies_, 12);  // not for first tokens
  EXPECT_EQ(completions_, 2);
  const EngineSnapshot snapshot = core_->snapshot();
  EXPECT_EQ(snapshot.prompt_tokens_total, 720u);
  EXPECT_EQ(snapshot.generated_tokens_total, 14u);
  EXPECT_GT(snapshot.generated_tokens_per_second, 0);
}

TEST_F(EngineCoreTest, GreedyOutputDoesNotDependOnTheCompany) {
  constexpr int kRequests = 12;
  options_.max_cached_prefixes = 0;  // where keys and values are quantized, a hit may show
  MakeCore(Limits());
  for (const char* policy : {"fp16", "static:K4V4", "random:K2V2=1,K8V4=1"}) {
    // Prompts are run in other slices in company: alone up to 512 tokens at once, then 64 and less.
    std::vector<Request> requests;
    for (int i = 0; i < kRequests; ++i) {
      requests.push_back(
          runtime_->GreedyRequest(runtime_->Prompt(1 + 59 * i, /*seed=*/i), 20 + 5 * i));
      requests.back().kv_policy = *ParsePrecisionPolicy(policy);
    }
    std::vector<std::vector<int32_t>> alone;
    for (const Request& request : requests) {
      Client client;
      Submit(request, client);
      alone.push_back(Finish(client).ids());
    }
    std::vector<Client> clients(kRequests);
    for (int i = 0; i < kRequests; ++i) {
      Submit(requests[i], clients[i]);
      if (i % 3 == 0) Step();
    }
    for (int i = 0; i < kRequests; ++i) {
      EXPECT_EQ(Finish(clients[i]).ids(), alone[i]) << policy << " " << i;
    }
    ExpectIdle();
  }
}

TEST_F(EngineCoreTest, SampledOutputFollowsFromSeedAndPromptAlone) {
  Request request = runtime_->GreedyRequest(runtime_->Prompt(30), 60);
  request.sampling = {.temperature = 1.2f, .top_k = 50, .top_p = 0.95f, .seed = 7};
  Client first, second, other, company;
  Submit(request, first);
  const std::vector<int32_t> ids = Finish(first).ids();
  Submit(runtime_->GreedyRequest(runtime_->Prompt(300, 5), 100), company);
  Submit(request, second);
  EXPECT_EQ(Finish(second).ids(), ids);
  request.sampling.seed = 8;
  Submit(request, other);
  EXPECT_NE(Finish(other).ids(), ids);
}

TEST_F(EngineCoreTest, CancelledInTheMiddleOfAPrefill) {
  Client client, other;
  const uint64_t number = Submit(runtime_->GreedyRequest(runtime_->Prompt(1500), 20), client);
  Submit(runtime_->GreedyRequest(runtime_->Prompt(5), 200), other);
  Step();
  Step();
  EXPECT_GT(core_->pool().stats().used_bytes, 0u);
  queue_->Cancel(number);
  Step();
  const Client::Received& received = client.Poll();
  ASSERT_TRUE(received.completion.has_value());
  EXPECT_EQ(received.completion->reason, FinishReason::kCancelled);
  EXPECT_EQ(received.completion->status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(received.tokens.empty());
  EXPECT_EQ(received.completion->time_to_first_token, absl::InfiniteDuration());
  EXPECT_GT(received.completion->kv.true_bytes, 0u);
  EXPECT_EQ(Finish(other).completion->reason, FinishReason::kLength);
  ExpectIdle();
}

TEST_F(EngineCoreTest, CancelledBeforeItsFirstStepAndWhileDecoding) {
  Client early, late;
  const uint64_t early_number = Submit(runtime_->GreedyRequest(runtime_->Prompt(9), 50), early);
  queue_->Cancel(early_number);
  const uint64_t late_number = Submit(runtime_->GreedyRequest(runtime_->Prompt(9), 50), late);
  for (int i = 0; i < 5; ++i) Step();
  EXPECT_EQ(early.Poll().completion->reason, FinishReason::kCancelled);
  EXPECT_TRUE(early.Poll().tokens.empty());
  queue_->Cancel(late_number);
  queue_->Cancel(late_number);
  queue_->Cancel(123456);
  Step();
  EXPECT_EQ(late.Poll().completion->reason, FinishReason::kCancelled);
  EXPECT_EQ(late.Poll().tokens.size(), 5u);
  EXPECT_EQ(late.Poll().completion->completion_tokens, 5);
  EXPECT_EQ(completions_, 2);
  ExpectIdle();
}

TEST_F(EngineCoreTest, DeadlinesInTheQueueInPrefillAndInDecode) {
  options_.max_running_requests = 2;
  MakeCore(Limits());
  Client prefilling, decoding, queued, patient;
  Request request = runtime_->GreedyRequest(runtime_->Prompt(1900), 10);
  request.deadline = kNow + absl::Seconds(2);
  Submit(request, prefilling);
  request = runtime_->GreedyRequest(runtime_->Prompt(4), 1000);
  request.deadline = kNow + absl::Seconds(3);
  Submit(request, decoding);
  request = runtime_->GreedyRequest(runtime_->Prompt(4), 10);
  request.deadline = kNow + absl::Seconds(1);
  Submit(request, queued);
  Submit(runtime_->GreedyRequest(runtime_->Prompt(4), 10), patient);

  Step();
  Step();
  EXPECT_FALSE(queued.Poll().completion.has_value());
  Step(kNow + absl::Seconds(1));
  ASSERT_TRUE(queued.Poll().completion.has_value());
  EXPECT_EQ(queued.Poll().completion->reason, FinishReason::kDeadline);
  EXPECT_EQ(queued.Poll().completion->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(queued.Poll().completion->queue_time, absl::Seconds(1));
  EXPECT_FALSE(prefilling.Poll().completion.has_value());

  Step(kNow + absl::Seconds(2));
  EXPECT_EQ(prefilling.Poll().completion->reason, FinishReason::kDeadline);
  EXPECT_TRUE(prefilling.Poll().tokens.empty());
  EXPECT_FALSE(decoding.Poll().completion.has_value());
  EXPECT_GT(decoding.Poll().tokens.size(), 1u);

  Step(kNow + absl::Seconds(3));
  EXPECT_EQ(decoding.Poll().completion->reason, FinishReason::kDeadline);
  EXPECT_EQ(decoding.Poll().completion->completion_tokens,
            static_cast<int>(decoding.Poll().tokens.size()));
  EXPECT_EQ(Finish(patient).completion->reason, FinishReason::kLength);
  ExpectIdle();
}

TEST_F(EngineCoreTest, StopStringsAcrossTokensNeverLeakAndEndTheText) {
  const std::vector<int32_t> prompt = runtime_->Prompt(25, 3);
  const std::vector<int32_t> ids = runtime_->ReferenceGreedy(prompt, 60);
  const std::string text = runtime_->Text(ids);
  ASSERT_GT(text.size(), 50u);
  for (size_t begin : {0, 5, 17, 30}) {
    for (size_t length : {1, 2, 7, 20}) {
      const std::string stop = text.substr(begin, length);
      const size_t expected = text.find(stop);
      Client client;
      Request request = runtime_->GreedyRequest(prompt, 60);
      request.stop = {"never to be seen", stop};
      Submit(request, client);
      std::string streamed;
      while (!client.Poll().completion.has_value()) {
        Step();
        streamed = client.Poll().text;
        ASSERT_LE(streamed.size(), expected) << "part of the stop string leaked";
      }
      EXPECT_EQ(streamed, text.substr(0, expected));
      EXPECT_EQ(client.Poll().completion->reason, FinishReason::kStop);
      // The tokens are those up to the one that completed the stop string.
      const std::vector<int32_t> got = client.Poll().ids();
      EXPECT_EQ(client.Poll().completion->completion_tokens, static_cast<int>(got.size()));
      EXPECT_EQ(got, std::vector<int32_t>(ids.begin(), ids.begin() + got.size()));
      EXPECT_THAT(runtime_->Text(got), HasSubstr(stop));
      EXPECT_EQ(runtime_->Text({got.begin(), got.end() - 1}).find(stop), std::string::npos);
    }
  }
}

TEST_F(EngineCoreTest, TextHeldBackForAStopStringComesAtTheEnd) {
  const std::vector<int32_t> prompt = runtime_->Prompt(25, 3);
  const std::string text = runtime_->Text(runtime_->ReferenceGreedy(prompt, 20));
  Client client;
  Request request = runtime_->GreedyRequest(prompt, 20);
  request.stop = {text.substr(text.size() - 6) + "\x01"};
  Submit(request, client);
  EXPECT_EQ(Finish(client).text, text);
  EXPECT_EQ(client.Poll().completion->reason, FinishReason::kLength);
}

TEST_F(EngineCoreTest, AStopTokenEndsItWithoutItsText) {
  const std::vector<int32_t> prompt = runtime_->Prompt(25, 3);
  const std::vector<int32_t> ids = runtime_->ReferenceGreedy(prompt, 60);
  const int32_t stop = ids[20];
  const auto length = static_cast<size_t>(std::find(ids.begin(), ids.end(), stop) - ids.begin());
  Client client;
  Request request = runtime_->GreedyRequest(prompt, 60);
  request.stop_token_ids = {stop};
  request.ignore_eos = true;  // does not concern stop tokens
  Submit(request, client);
  const Client::Received& received = Finish(client);
  EXPECT_EQ(received.completion->reason, FinishReason::kStop);
  EXPECT_EQ(received.ids(), std::vector<int32_t>(ids.begin(), ids.begin() + length + 1));
  EXPECT_EQ(received.text, runtime_->Text({ids.begin(), ids.begin() + length}));
  EXPECT_EQ(received.completion->completion_tokens, static_cast<int>(length) + 1);
}

// At a temperature of 100 every token is about as likely: special ones and bytes that are not
// UTF-8.
Request WildRequest(const TinyRuntime& runtime, uint64_t seed) {
  Request request = runtime.GreedyRequest(runtime.Prompt(3), 1500);
  request.sampling = {.temperature = 100, .seed = seed};
  return request;
}

TEST_F(EngineCoreTest, EndOfGenerationEndsItUnlessIgnored) {
  Request request = WildRequest(*runtime_, 4);
  request.ignore_eos = true;
  Client ignoring, heeding;
  Submit(request, ignoring);
  const std::vector<int32_t> all = Finish(ignoring).ids();
  EXPECT_EQ(all.size(), 1500u);
  EXPECT_EQ(ignoring.Poll().completion->reason, FinishReason::kLength);
  const auto end = std::find_if(all.begin(), all.end(), [&](int32_t id) {
    return runtime_->tokenizer->IsEndOfGeneration(id);
  });
  ASSERT_NE(end, all.end());

  request.ignore_eos = false;
  Submit(request, heeding);
  const Client::Received& received = Finish(heeding);
  EXPECT_EQ(received.completion->reason, FinishReason::kStop);
  EXPECT_EQ(received.ids(), std::vector<int32_t>(all.begin(), end + 1));
  EXPECT_EQ(received.text, runtime_->Text({all.begin(), end + 1}));
}

TEST_F(EngineCoreTest, TextIsCutAtCharacters) {
  Request request = WildRequest(*runtime_, 5);
  request.ignore_eos = true;
  Client client;
  Submit(request, client);
  while (!client.Poll().completion.has_value()) {
    Step();
    ASSERT_EQ(FindInvalidUtf8(client.Poll().text), std::string::npos);
  }
  EXPECT_EQ(client.Poll().text, runtime_->Text(client.Poll().ids()));
}

TEST_F(EngineCoreTest, LogprobsDescribeTheModelsDistribution) {
  const std::vector<int32_t> prompt = runtime_->Prompt(12);
  Request request = runtime_->GreedyRequest(prompt, 10);
  request.logprobs = 3;
  request.sampling = {.temperature = 1, .repetition_penalty = 1.5f, .seed = 3};
  Client client;
  Submit(request, client);
  const Client::Received& received = Finish(client);
  std::vector<int32_t> tokens = prompt;
  for (int32_t id : received.ids()) tokens.push_back(id);
  const auto rows = runtime_->ReferenceLogits(tokens, prompt.size());
  SamplerScratch scratch;
  for (size_t i = 0; i < received.tokens.size(); ++i) {
    const TokenOutput& got = received.tokens[i];
    const TokenOutput expected = DescribeToken(rows[prompt.size() - 1 + i], got.id, 3, scratch);
    EXPECT_EQ(got.logprob, expected.logprob);
    ASSERT_EQ(got.top.size(), 3u);
    for (int j = 0; j < 3; ++j) EXPECT_EQ(got.top[j].id, expected.top[j].id);
  }
}

TEST_F(EngineCoreTest, ScoresEqualTheReference) {
  for (int scored : {1, 5, 64, 65, 299}) {
    const std::vector<int32_t> tokens = runtime_->Prompt(300, 8);
    Request request;
    request.prompt = tokens;
    request.max_new_tokens = 0;
    request.score_tokens = scored;
    Client client, company;
    Submit(runtime_->GreedyRequest(runtime_->Prompt(5), 3), company);
    Submit(request, client);
    const Client::Received& received = Finish(client);
    const auto rows = runtime_->ReferenceLogits(tokens, 300 - scored);
    ASSERT_EQ(received.tokens.size(), static_cast<size_t>(scored));
    SamplerScratch scratch;
    for (int i = 0; i < scored; ++i) {
      const int position = 300 - scored + i;
      const TokenOutput expected = DescribeToken(rows[position - 1], tokens[position], 0, scratch);
      EXPECT_EQ(received.tokens[i].id, tokens[position]);
      EXPECT_EQ(received.tokens[i].logprob, expected.logprob);
      EXPECT_EQ(received.tokens[i].is_greedy, expected.is_greedy);
    }
    EXPECT_TRUE(received.text.empty());
    EXPECT_EQ(received.completion->reason, FinishReason::kStop);
    EXPECT_EQ(received.completion->prompt_tokens, 300);
    EXPECT_EQ(received.completion->completion_tokens, 0);
    Finish(company);
    ExpectIdle();
  }
}

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
  while (queue_->state().running == static_cast<int>(clients.size())) {
    Step();
    ASSERT_FALSE(HasFatalFailure());
  }
  int64_t demotions = 0;
  for (const auto& row : core_->snapshot().demotions_total) {
    for (int64_t count : row) demotions += count;
  }
  EXPECT_GT(demotions, 0);
  for (Client& client : clients) EXPECT_TRUE(Finish(client).completion->status.ok());
  ExpectIdle();
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

TEST_F(EngineCoreTest, EstimatesWhatOneMoreWouldWait) {
  options_.max_running_requests = 1;
  MakeCore(Limits());
  EXPECT_EQ(core_->snapshot().estimated_wait, absl::ZeroDuration());
  Client running, waiting;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(4), 1000), running);
  EXPECT_EQ(core_->snapshot().estimated_wait, kDefaultRetryAfter);  // no pace yet
  Step();
  const absl::Duration behind_one = core_->snapshot().estimated_wait;
  EXPECT_GT(behind_one, absl::ZeroDuration());
  EXPECT_NE(behind_one, kDefaultRetryAfter);
  Submit(runtime_->GreedyRequest(runtime_->Prompt(4), 1000), waiting);
  EXPECT_GT(core_->snapshot().estimated_wait, 1.9 * behind_one);
  queue_->Stop();
  Step();
  EXPECT_EQ(core_->snapshot().estimated_wait, absl::ZeroDuration());
}

TEST_F(EngineCoreTest, AStoppedQueueEndsEverything) {
  options_.max_running_requests = 1;
  MakeCore(Limits());
  Client running, waiting;
  Submit(runtime_->GreedyRequest(runtime_->Prompt(4), 1000), running);
  Submit(runtime_->GreedyRequest(runtime_->Prompt(4), 1000), waiting);
  Step();
  queue_->Stop();
  EXPECT_FALSE(queue_->AwaitWork());
  Step();
  EXPECT_EQ(running.Poll().completion->reason, FinishReason::kCancelled);
  EXPECT_EQ(waiting.Poll().completion->reason, FinishReason::kCancelled);
  ExpectIdle();
}

}  // namespace
}  // namespace whit
