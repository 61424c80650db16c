// What of a request's tokens reaches its client: text, stops, log-probabilities, scores.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/text/utf8.h"
#include "tests/unit/runtime/engine/engine_core_fixture.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

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

}  // namespace
}  // namespace whit
