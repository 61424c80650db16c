#include "kvpool/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

namespace whit {
namespace {

constexpr int kBlock = PageTable::kForkTokens;
constexpr int kDim = 16;
const size_t kBlockBytes = kBlock / 16 * PageBytes(Rung::kFp16, kDim);

std::unique_ptr<PagePool> MakePool() {
  return *PagePool::Create({.capacity_bytes = 200 * PagePool::kSlabBytes, .head_dim = kDim});
}

// A table that holds `count` tokens, all settled that can be.
PageTable MakeTable(PagePool* pool, int count, Rung rung = Rung::kFp16) {
  PageTable table(pool, {.num_layers = 1, .num_kv_heads = 1}, {.rung = Rung::kFp16}, nullptr);
  const std::vector<float> rows(size_t{1} * count * kDim, 1.0f);
  table.Append(0, 0, count, {.keys = rows.data(), .values = rows.data(), .stride = kDim});
  PageTable::LeavingPage page;
  while (table.NextLeaving(0, 0, &page)) {
    table.Settle(0, 0, std::vector<Rung>(page.tokens, rung));
  }
  return table;
}

std::vector<int32_t> Tokens(int count, int seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % 1000);
  return tokens;
}

TEST(PrefixIndexTest, FindsTheLongestWholeBlocksOfTheSameKind) {
  const auto pool = MakePool();
  PrefixIndex index(8);
  const std::vector<int32_t> tokens = Tokens(3 * kBlock + 40, 1);
  index.Insert("fp16", tokens, MakeTable(pool.get(), 3 * kBlock + 40));
  EXPECT_EQ(index.Find("fp16", tokens).tokens, 3 * kBlock);
  EXPECT_EQ(index.Find("static:K4V4", tokens).tokens, 0);
  const auto first = [&](int n) { return absl::MakeConstSpan(tokens).subspan(0, n); };
  EXPECT_EQ(index.Find("fp16", first(kBlock - 1)).tokens, 0);
  EXPECT_EQ(index.Find("fp16", first(2 * kBlock)).tokens, 2 * kBlock);
  std::vector<int32_t> other = tokens;
  other[2 * kBlock + 5] += 1;
  const PrefixIndex::Match match = index.Find("fp16", other);
  EXPECT_EQ(match.tokens, 2 * kBlock);
  EXPECT_EQ(match.table->Fork(match.tokens).num_tokens(), 2 * kBlock);
  other[0] += 1;
  EXPECT_EQ(index.Find("fp16", other).tokens, 0);
}

TEST(PrefixIndexTest, EvictionFreesThePagesOfTheLeastRecentlyUsed) {
  const auto pool = MakePool();
  PrefixIndex index(8);
  const auto a = Tokens(kBlock, 1), b = Tokens(kBlock, 2);
  index.Insert("fp16", a, MakeTable(pool.get(), kBlock));
  index.Insert("fp16", b, MakeTable(pool.get(), kBlock));
  EXPECT_EQ(index.Find("fp16", a).tokens, kBlock);  // now b is the oldest
  EXPECT_TRUE(index.EvictOldest());
  EXPECT_EQ(index.Find("fp16", b).tokens, 0);
  EXPECT_EQ(index.Find("fp16", a).tokens, kBlock);
  EXPECT_EQ(pool->stats().reclaimable_bytes, kBlockBytes);
  EXPECT_TRUE(index.EvictOldest());
  EXPECT_FALSE(index.EvictOldest());
  EXPECT_EQ(pool->stats().free_bytes, pool->stats().capacity_bytes);
}

TEST(PrefixIndexTest, ATableThatAddsNothingIsNotKept) {
  const auto pool = MakePool();
  PrefixIndex index(8);
  const auto tokens = Tokens(2 * kBlock, 1);
  index.Insert("fp16", tokens, MakeTable(pool.get(), 2 * kBlock));
  index.Insert("fp16", tokens, MakeTable(pool.get(), 2 * kBlock));
  index.Insert("fp16", absl::MakeConstSpan(tokens).subspan(0, kBlock),
               MakeTable(pool.get(), kBlock));
  index.Insert("fp16", Tokens(kBlock - 1, 3), MakeTable(pool.get(), kBlock - 1));
  EXPECT_EQ(index.num_tables(), 1u);
}

TEST(PrefixIndexTest, ATableTakesThePlaceOfTheOneItGoesOnFrom) {
  const auto pool = MakePool();
  PrefixIndex index(8);
  const auto tokens = Tokens(3 * kBlock, 1);
  const auto first = [&](int n) { return absl::MakeConstSpan(tokens).subspan(0, n); };
  index.Insert("fp16", first(kBlock), MakeTable(pool.get(), kBlock));
  index.Insert("fp16", first(2 * kBlock), MakeTable(pool.get(), 2 * kBlock));
  EXPECT_EQ(index.num_tables(), 1u);
  EXPECT_EQ(pool->stats().reclaimable_bytes, 2 * kBlockBytes);
  EXPECT_EQ(index.Find("fp16", tokens).tokens, 2 * kBlock);
  EXPECT_EQ(index.Find("fp16", first(kBlock)).tokens, kBlock);
  // One that branches off before the end of another does not.
  auto branch = tokens;
  branch[kBlock] += 1;
  index.Insert("fp16", branch, MakeTable(pool.get(), 3 * kBlock));
  EXPECT_EQ(index.num_tables(), 2u);
  EXPECT_EQ(index.Find("fp16", tokens).tokens, 2 * kBlock);
}

TEST(PrefixIndexTest, KeepsNoMoreThanTheTokensItIsGiven) {
  const auto pool = MakePool();
  PrefixIndex index(8);
  const auto tokens = Tokens(2 * kBlock + 50, 1);
  index.Insert("fp16", absl::MakeConstSpan(tokens).subspan(0, kBlock + 20),
               MakeTable(pool.get(), 2 * kBlock + 50));
  EXPECT_EQ(index.Find("fp16", tokens).tokens, kBlock);
  EXPECT_EQ(pool->stats().reclaimable_bytes, kBlockBytes);
}

TEST(PrefixIndexTest, PagesAreUsedWhileARequestHoldsThemAndReclaimableAfter) {
  const auto pool = MakePool();
  PrefixIndex index(8);
  const auto tokens = Tokens(2 * kBlock, 1);
  const auto expect = [&](size_t used, size_t reclaimable, int64_t blocks) {
    const PagePoolStats stats = pool->stats();
    EXPECT_EQ(stats.used_bytes, used * kBlockBytes);
    EXPECT_EQ(stats.used_bytes_by_rung[static_cast<size_t>(Rung::kFp16)], used * kBlockBytes);
    EXPECT_EQ(stats.reclaimable_bytes, reclaimable * kBlockBytes);
    EXPECT_EQ(stats.used_bytes + stats.reclaimable_bytes + stats.free_bytes, stats.capacity_bytes);
    EXPECT_EQ(stats.settled_blocks, blocks);
    EXPECT_TRUE(pool->CheckInvariants().ok()) << pool->CheckInvariants();
  };
  index.Insert("fp16", tokens, MakeTable(pool.get(), 2 * kBlock));
  expect(0, 2, 2);
  {
    const PageTable one = index.Find("fp16", tokens).table->Fork(kBlock);
    expect(1, 1, 2);
    {
      const PageTable other = index.Find("fp16", tokens).table->Fork(2 * kBlock);
      expect(2, 0, 2);
    }
    expect(1, 1, 2);
    EXPECT_TRUE(index.EvictOldest());
    expect(1, 0, 1);  // the request keeps what it began with
  }
  expect(0, 0, 0);
}

// Against a plain list of token sequences, searched from the longest prefix down.
TEST(PrefixIndexTest, BehavesLikeASimpleModel) {
  const auto pool = MakePool();
  constexpr size_t kMaxTables = 5;
  PrefixIndex index(kMaxTables);
  std::deque<std::vector<int32_t>> model;  // least recently used first
  std::mt19937 rng(4);
  int hits = 0;
  for (int step = 0; step < 2000; ++step) {
    // Prompts made of few kinds of blocks share many beginnings.
    std::vector<int32_t> tokens;
    for (int blocks = 1 + rng() % 4; blocks > 0; --blocks) {
      const auto block = Tokens(kBlock, 10 + rng() % 2);
      tokens.insert(tokens.end(), block.begin(), block.end());
    }
    tokens.resize(tokens.size() - rng() % 2 * 7);
    size_t longest = 0;
    for (const auto& known : model) {
      const auto end = std::mismatch(tokens.begin(), tokens.end(), known.begin(), known.end());
      longest = std::max<size_t>(longest, (end.first - tokens.begin()) / kBlock * kBlock);
    }
    const PrefixIndex::Match match = index.Find("k", tokens);
    // Evicting one of two holders of a prefix may lose sight of it, never more than that.
    ASSERT_LE(match.tokens, static_cast<int>(longest));
    if (match.tokens > 0) {
      ++hits;
      ASSERT_GE(match.table->forkable_tokens(), match.tokens);
    }
    index.Insert("k", tokens, MakeTable(pool.get(), static_cast<int>(tokens.size())));
    model.push_back(tokens);
    ASSERT_LE(index.num_tables(), kMaxTables);
    const size_t whole = tokens.size() / kBlock * kBlock;
    ASSERT_EQ(index.Find("k", tokens).tokens, static_cast<int>(whole));
  }
  EXPECT_GT(hits, 500);
  while (index.EvictOldest()) {
  }
  EXPECT_EQ(pool->stats().free_bytes, pool->stats().capacity_bytes);
  EXPECT_EQ(pool->stats().settled_blocks, 0);
}

}  // namespace
}  // namespace whit
