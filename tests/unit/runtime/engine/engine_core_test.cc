// What the engine does with requests: tokens, cancels, deadlines, the end.
#include <gtest/gtest.h>

#include <vector>

#include "tests/unit/runtime/engine/engine_core_fixture.h"

namespace whit {
namespace {

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
