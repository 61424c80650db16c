// What the engine keeps of finished requests, and gives to those that begin alike.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "runtime/engine/engine.h"
#include "tests/unit/runtime/engine/tiny_runtime.h"

namespace whit {
namespace {

class PrefixCacheTest : public ::testing::Test {
 protected:
  void MakeEngine(size_t kv_cache_bytes, int max_cached_prefixes) {
    auto engine = Engine::Create(
        {.kv_cache_bytes = kv_cache_bytes, .max_cached_prefixes = max_cached_prefixes},
        *runtime_.model, *runtime_.tokenizer);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  Client::Received Run(const std::vector<int32_t>& prompt, const char* policy = "fp16") {
    Client client;
    Request request = runtime_.GreedyRequest(prompt, 20);
    request.kv_policy = *ParsePrecisionPolicy(policy);
    EXPECT_TRUE(engine_->Submit(*engine_->Admit(), request, client.sink()).ok());
    Client::Received received = client.Wait();
    EXPECT_TRUE(received.completion->status.ok()) << received.completion->status;
    return received;
  }

  TinyRuntime runtime_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(PrefixCacheTest, APromptThatBeginsAlikeIsNotComputedAgain) {
  MakeEngine(size_t{16} << 20, 8);
  const std::vector<int32_t> prompt = runtime_.Prompt(300);
  const Client::Received first = Run(prompt);
  EXPECT_EQ(first.completion->cached_tokens, 0);
  const uint64_t computed = engine_->snapshot().prompt_tokens_total;
  const Client::Received second = Run(prompt);
  EXPECT_EQ(second.completion->cached_tokens, 256);
  EXPECT_EQ(engine_->snapshot().prompt_tokens_total - computed, 300u - 256);
  // At FP16 the pages are what would have been computed, bit for bit.
  EXPECT_EQ(second.ids(), first.ids());

  // The conversation goes on: the answer is cached as well.
  std::vector<int32_t> longer = prompt;
  const std::vector<int32_t> answer = first.ids();
  longer.insert(longer.end(), answer.begin(), answer.end());
  const std::vector<int32_t> question = runtime_.Prompt(200, 7);
  longer.insert(longer.end(), question.begin(), question.end());
  EXPECT_EQ(Run(longer).completion->cached_tokens, 256);
  EXPECT_EQ(Run(longer).completion->cached_tokens, 512);

  // A prompt that is cached whole still runs its last block: its last token's logits are needed.
  const std::vector<int32_t> blocks(prompt.begin(), prompt.begin() + 256);
  EXPECT_EQ(Run(blocks).completion->cached_tokens, 128);

  const EngineSnapshot snapshot = engine_->snapshot();
  EXPECT_EQ(snapshot.prefix_hit_tokens_total, 256u + 256 + 512 + 128);
  EXPECT_EQ(snapshot.prefix_query_tokens_total, 299u + 299 + 519 + 519 + 255);
}

TEST_F(PrefixCacheTest, AnotherPolicyOrPromptGetsNothing) {
  MakeEngine(size_t{16} << 20, 8);
  const std::vector<int32_t> prompt = runtime_.Prompt(300);
  Run(prompt);
  EXPECT_EQ(Run(prompt, "static:K4V4").completion->cached_tokens, 0);
  EXPECT_EQ(Run(prompt, "static:K4V4").completion->cached_tokens, 256);
  EXPECT_EQ(Run(prompt, "random:K2V2=1,K8V8=1").completion->cached_tokens, 0);
  EXPECT_EQ(Run(prompt, "random:K2V2=1,K8V8=1").completion->cached_tokens, 256);
  EXPECT_EQ(Run(runtime_.Prompt(300, 2)).completion->cached_tokens, 0);
}

TEST_F(PrefixCacheTest, CachedPrefixesGiveWayToReservations) {
  const ModelConfig& model = runtime_.model->config();
  const size_t tile =
      size_t{1} * model.num_layers * model.num_kv_heads * PageBytes(Rung::kFp16, model.head_dim);
  // Room for about three requests of 320 tokens.
  MakeEngine(3 * 20 * tile + 4 * PagePool::kSlabBytes, 100);
  for (uint32_t seed = 1; seed <= 12; ++seed) Run(runtime_.Prompt(300, seed));
  const EngineSnapshot snapshot = engine_->snapshot();
  EXPECT_GE(snapshot.cached_prefixes, 1);
  EXPECT_LT(snapshot.cached_prefixes, 12);
  EXPECT_LE(snapshot.pool.used_bytes, snapshot.pool.capacity_bytes);
}

TEST_F(PrefixCacheTest, NoneAreKeptIfNoneAreWanted) {
  MakeEngine(size_t{16} << 20, 0);
  Run(runtime_.Prompt(300));
  EXPECT_EQ(Run(runtime_.Prompt(300)).completion->cached_tokens, 0);
  EXPECT_EQ(engine_->snapshot().pool.used_bytes, 0u);
}

}  // namespace
}  // namespace whit
