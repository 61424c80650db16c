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
    all_ = engine_->snapshot().headroom_tokens_floor;
  }

  Client::Received Run(const std::vector<int32_t>& prompt, const char* policy = "fp16",
                       int max_new_tokens = 20) {
    Client client;
    Request request = runtime_.GreedyRequest(prompt, max_new_tokens);
    request.kv_policy = *ParsePrecisionPolicy(policy);
    EXPECT_TRUE(engine_->Submit(*engine_->Admit(), request, client.sink()).ok());
    Client::Received received = client.Wait();
    EXPECT_TRUE(received.completion->status.ok()) << received.completion->status;
    return received;
  }

  int HeadDim() const { return runtime_.model->config().head_dim; }
  // Bytes of 16 tokens at FP16.
  size_t tile() const {
    const ModelConfig& model = runtime_.model->config();
    return size_t{1} * model.num_layers * model.num_kv_heads *
           PageBytes(Rung::kFp16, model.head_dim);
  }

  TinyRuntime runtime_;
  std::unique_ptr<Engine> engine_;
  int64_t all_ = 0;  // tokens that an empty engine has room for
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

// Tokens that a request generates run with finer activations than those of a prompt. So that a hit
// is what computing would be, they are not taken for a prompt's.
TEST_F(PrefixCacheTest, AtFp16AHitGivesTheTokensOfAMissBitForBit) {
  MakeEngine(size_t{16} << 20, 8);
  std::vector<int32_t> conversation = runtime_.Prompt(150);
  for (uint32_t turn = 1; turn <= 4; ++turn) {
    const Client::Received cached = Run(conversation, "fp16", 150);
    EXPECT_EQ(cached.completion->cached_tokens > 0, turn > 1);
    EXPECT_EQ(cached.ids(), runtime_.ReferenceGreedy(conversation, 150)) << "turn " << turn;
    const std::vector<int32_t> answer = cached.ids(), question = runtime_.Prompt(40, turn);
    conversation.insert(conversation.end(), answer.begin(), answer.end());
    conversation.insert(conversation.end(), question.begin(), question.end());
  }
  // Where keys and values are quantized, a hit is not the same anyway, and the answer is kept too.
  conversation = runtime_.Prompt(100);
  const std::vector<int32_t> answer = Run(conversation, "static:K4V4", 300).ids();
  conversation.insert(conversation.end(), answer.begin(), answer.end());
  EXPECT_EQ(Run(conversation, "static:K4V4").completion->cached_tokens, 256);
}

TEST_F(PrefixCacheTest, ScoredTokensAreNoPrompt) {
  MakeEngine(size_t{16} << 20, 8);
  const std::vector<int32_t> tokens = runtime_.Prompt(300);
  Request request;
  request.prompt = tokens;
  request.max_new_tokens = 0;
  request.score_tokens = 100;
  Client client;
  ASSERT_TRUE(engine_->Submit(*engine_->Admit(), request, client.sink()).ok());
  EXPECT_TRUE(client.Wait().completion->status.ok());
  const Client::Received received = Run(tokens);
  EXPECT_EQ(received.completion->cached_tokens, 128);
  EXPECT_EQ(received.ids(), runtime_.ReferenceGreedy(tokens, 20));
}

TEST_F(PrefixCacheTest, ASharedPageAndItsTokensCountOnce) {
  MakeEngine(size_t{16} << 20, 8);
  const size_t token_bytes = runtime_.model->config().kv_elements_per_token() * sizeof(uint16_t);
  const std::vector<int32_t> prompt = runtime_.Prompt(300);
  Run(prompt);
  EngineSnapshot snapshot = engine_->snapshot();
  EXPECT_EQ(snapshot.pool.used_bytes, 0u);
  EXPECT_EQ(snapshot.pool.reclaimable_bytes, 256 * token_bytes);
  EXPECT_EQ(snapshot.fp16_equivalent_bytes, 256 * token_bytes);
  // Each page has an entry in a table.
  EXPECT_DOUBLE_EQ(snapshot.mean_bits,
                   16 * (1.0 + 1.0 * sizeof(PageEntry) / PageBytes(Rung::kFp16, HeadDim())));
  EXPECT_EQ(snapshot.headroom_tokens_floor, all_);  // what is reclaimable can be had
  Run(prompt);
  snapshot = engine_->snapshot();
  EXPECT_EQ(snapshot.pool.reclaimable_bytes, 256 * token_bytes);
  EXPECT_EQ(snapshot.fp16_equivalent_bytes, 256 * token_bytes);

  // Two that run at the same time on the same cached pages, and go on by themselves.
  std::vector<Client> clients(2);
  for (Client& client : clients) {
    const Request request = runtime_.GreedyRequest(runtime_.Prompt(300), 1000);
    ASSERT_TRUE(engine_->Submit(*engine_->Admit(), request, client.sink()).ok());
  }
  for (Client& client : clients) client.WaitForTokens(5);
  snapshot = engine_->snapshot();
  EXPECT_EQ(snapshot.running, 2);
  EXPECT_EQ(snapshot.pool.reclaimable_bytes, 0u);
  const size_t own = snapshot.pool.used_bytes - 256 * token_bytes;
  EXPECT_GE(own, 2 * 48 * token_bytes);  // 44 tokens of the prompt and some more
  EXPECT_EQ(own % (16 * token_bytes), 0u);
  EXPECT_GT(snapshot.fp16_equivalent_bytes, snapshot.pool.used_bytes - 2 * 16 * token_bytes);
  EXPECT_LE(snapshot.fp16_equivalent_bytes, snapshot.pool.used_bytes);
}

TEST_F(PrefixCacheTest, CachedPrefixesGiveWayToReservations) {
  // Room for about three requests of 320 tokens.
  MakeEngine(3 * 20 * tile() + 11 * PagePool::kSlabBytes, 100);
  for (uint32_t seed = 1; seed <= 12; ++seed) Run(runtime_.Prompt(300, seed));
  const EngineSnapshot snapshot = engine_->snapshot();
  EXPECT_GE(snapshot.cached_prefixes, 1);
  EXPECT_LT(snapshot.cached_prefixes, 12);
  EXPECT_EQ(snapshot.pool.used_bytes, 0u);
  EXPECT_EQ(snapshot.headroom_tokens_floor, all_);
}

// A cache full of pages at other rungs, in slabs that each hold some, is not in the way of a
// request that needs all there is.
TEST_F(PrefixCacheTest, ARequestThatNeedsTheWholePoolGetsIt) {
  MakeEngine(1600 / 16 * tile() + 7 * PagePool::kSlabBytes, 100);
  for (const char* policy : {"static:K2V2", "static:K8V4", "random:K2V2=1,K4V4=1,K8V8=1", "fp16"}) {
    for (uint32_t seed = 1; seed <= 6; ++seed) Run(runtime_.Prompt(200, seed), policy);
  }
  EXPECT_GT(engine_->snapshot().cached_prefixes, 1);
  const auto length = static_cast<int>(all_) - 20;
  EXPECT_EQ(Run(runtime_.Prompt(length, 9)).ids(),
            runtime_.ReferenceGreedy(runtime_.Prompt(length, 9), 20));
  EXPECT_EQ(engine_->snapshot().cached_prefixes, 1);  // itself
}

TEST_F(PrefixCacheTest, NoneAreKeptIfNoneAreWanted) {
  MakeEngine(size_t{16} << 20, 0);
  Run(runtime_.Prompt(300));
  EXPECT_EQ(Run(runtime_.Prompt(300)).completion->cached_tokens, 0);
  EXPECT_EQ(engine_->snapshot().pool.used_bytes, 0u);
  EXPECT_EQ(engine_->snapshot().pool.reclaimable_bytes, 0u);
}

}  // namespace
}  // namespace whit
