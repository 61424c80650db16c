#include "kvpool/page_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace whit {
namespace {

constexpr RecentRing kExact = {.rung = Rung::kFp16, .tokens = 1 << 20};
constexpr Rung kAllRungs[] = {Rung::kK2V2, Rung::kK4V2, Rung::kK4V4,
                              Rung::kK8V4, Rung::kK8V8, Rung::kFp16};

std::unique_ptr<PagePool> MakePool(size_t slabs, int head_dim) {
  return *PagePool::Create({.capacity_bytes = slabs * PagePool::kSlabBytes, .head_dim = head_dim});
}

// Token t's key is filled with t + 1, its value with -(t + 1): exact in binary16.
struct Tokens {
  Tokens(int count, int head_dim) : keys(size_t{1} * count * head_dim), values(keys.size()) {
    for (size_t i = 0; i < keys.size(); ++i) {
      keys[i] = static_cast<float>(i / head_dim + 1);
      values[i] = -keys[i];
    }
  }
  TokenRows From(int token, int head_dim) const {
    return {.keys = keys.data() + size_t{1} * token * head_dim,
            .values = values.data() + size_t{1} * token * head_dim,
            .stride = static_cast<size_t>(head_dim)};
  }
  std::vector<float> keys, values;
};

TEST(PageTableTest, AppendedTokensReadBackInOrder) {
  constexpr int kDim = 16;
  const auto pool = MakePool(1, kDim);
  PageTable table(pool.get(), {.num_layers = 2, .num_kv_heads = 3}, kExact, nullptr);
  const Tokens tokens(20, kDim);
  table.Append(1, 2, 13, tokens.From(0, kDim));
  table.Append(1, 2, 7, tokens.From(13, kDim));
  ASSERT_EQ(table.pages(1, 2).size(), 2u);
  EXPECT_EQ(table.pages(1, 2)[0].tokens, 16);
  EXPECT_EQ(table.pages(1, 2)[1].tokens, 4);
  EXPECT_EQ(table.num_tokens(), 20);
  std::vector<float> keys, values;
  table.Read(1, 2, &keys, &values);
  EXPECT_EQ(keys, tokens.keys);
  EXPECT_EQ(values, tokens.values);
  EXPECT_TRUE(table.pages(1, 1).empty());
  PageTable::LeavingPage page;
  EXPECT_FALSE(table.NextLeaving(1, 2, &page));
}

TEST(PageTableTest, APageLeavesOnceTheRingIsFullBehindIt) {
  constexpr int kDim = 32;
  const auto pool = MakePool(3, kDim);
  PageTable table(pool.get(), {.num_layers = 1, .num_kv_heads = 1},
                  {.rung = Rung::kK8V8, .tokens = 20}, nullptr);
  const Tokens tokens(64, kDim);
  PageTable::LeavingPage page;
  table.Append(0, 0, 35, tokens.From(0, kDim));
  EXPECT_FALSE(table.NextLeaving(0, 0, &page));
  table.Append(0, 0, 1, tokens.From(35, kDim));
  ASSERT_TRUE(table.NextLeaving(0, 0, &page));
  EXPECT_EQ(page.first_position, 0);
  EXPECT_EQ(page.tokens, 16);
  table.Settle(0, 0, std::vector<Rung>(16, Rung::kK4V4));
  EXPECT_FALSE(table.NextLeaving(0, 0, &page));
  table.Append(0, 0, 16, tokens.From(36, kDim));
  ASSERT_TRUE(table.NextLeaving(0, 0, &page));
  EXPECT_EQ(page.first_position, 16);
  table.Settle(0, 0, std::vector<Rung>(16, Rung::kK4V4));
  // The first page is the sink and keeps its rung whatever was decided.
  const std::vector<Rung> expected = {Rung::kFp16, Rung::kK4V4, Rung::kK8V8, Rung::kK8V8};
  ASSERT_EQ(table.pages(0, 0).size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(table.pages(0, 0)[i].rung, expected[i]);
  EXPECT_EQ(pool->stats().used_pages_by_rung[static_cast<size_t>(Rung::kK8V8)], 2u);
}

// Random rungs, against a map from token to the rung it was given: no token is lost or doubled,
// pages of a rung are full but for one, and every token still stands for about what was appended.
TEST(PageTableTest, SettlingBehavesLikeASimpleModel) {
  constexpr int kDim = 32, kHeads = 3, kTokens = 700;
  const auto pool = MakePool(40, kDim);
  std::mt19937 rng(5);
  KeyMeans means({.num_layers = 1,
                  .num_kv_heads = kHeads,
                  .head_dim = kDim,
                  .inverse_frequencies = std::vector<float>(kDim / 2, 0.02f)},
                 std::vector<float>(kHeads * kDim, 3.0f));
  means.Prepare(kTokens);
  PageTable table(pool.get(), {.num_layers = 1, .num_kv_heads = kHeads},
                  {.rung = Rung::kK8V8, .tokens = 32}, &means);
  const Tokens tokens(kTokens, kDim);
  std::vector<std::map<int, Rung>> expected(kHeads);
  for (int token = 0; token < kTokens;) {
    const int count = std::min<int>(kTokens - token, 1 + rng() % 40);
    for (int head = 0; head < kHeads; ++head) {
      table.Append(0, head, count, tokens.From(token, kDim));
      PageTable::LeavingPage page;
      while (table.NextLeaving(0, head, &page)) {
        std::vector<Rung> rungs(page.tokens);
        for (int i = 0; i < page.tokens; ++i) {
          rungs[i] = kAllRungs[rng() % kNumRungs];
          // The first page is the sink.
          expected[head][page.first_position + i] =
              page.first_position == 0 ? Rung::kFp16 : rungs[i];
        }
        table.Settle(0, head, rungs);
      }
    }
    token += count;
  }
  ASSERT_TRUE(table.status().ok());
  for (int head = 0; head < kHeads; ++head) {
    std::vector<float> keys, values;
    table.Read(0, head, &keys, &values);
    ASSERT_EQ(keys.size(), size_t{kTokens} * kDim);
    std::map<Rung, int> partial;
    std::vector<int> seen(kTokens, 0);
    size_t index = 0;
    for (const PageEntry& page : table.pages(0, head)) {
      if (page.tokens < 16) ++partial[page.rung];
      for (int i = 0; i < page.tokens; ++i, ++index) {
        // A constant vector survives any number of bits up to its scale's rounding; the mean adds a
        // few per cent.
        const double value =
            std::accumulate(&values[index * kDim], &values[(index + 1) * kDim], 0.0);
        const int token = static_cast<int>(std::lround(-value / kDim)) - 1;
        ASSERT_GE(token, 0);
        ASSERT_LT(token, kTokens);
        ++seen[token];
        const auto it = expected[head].find(token);
        if (it != expected[head].end()) {
          EXPECT_EQ(page.rung, it->second) << token;
        }
      }
    }
    for (int token = 0; token < kTokens; ++token) EXPECT_EQ(seen[token], 1) << token;
    for (const auto& [rung, count] : partial) {
      EXPECT_LE(count, rung == Rung::kK8V8 ? 2 : 1) << RungName(rung);  // the ring has one as well
    }
  }
  const PageTable::Usage usage = table.usage();
  EXPECT_EQ(usage.page_bytes, pool->stats().used_bytes);
  EXPECT_EQ(std::accumulate(usage.tokens_by_rung.begin(), usage.tokens_by_rung.end(), int64_t{0}),
            int64_t{kTokens} * kHeads);
}

// A table whose settled tokens have random rungs, and what each list reads as at every fork point.
struct ForkableTable {
  static constexpr int kDim = 32, kHeads = 2;

  explicit ForkableTable(PagePool* pool)
      : table(pool, {.num_layers = 1, .num_kv_heads = kHeads}, {.rung = Rung::kK8V8, .tokens = 32},
              nullptr),
        tokens(2000, kDim) {}

  static void AppendTo(PageTable& table, const Tokens& tokens, int count, std::mt19937& rng) {
    const int first = table.num_tokens();
    for (int head = 0; head < kHeads; ++head) {
      for (int i = 0; i < count; ++i) {
        table.Append(0, head, 1, tokens.From(first + i, kDim));
        PageTable::LeavingPage page;
        while (table.NextLeaving(0, head, &page)) {
          std::vector<Rung> rungs(page.tokens);
          for (Rung& rung : rungs) rung = kAllRungs[rng() % kNumRungs];
          table.Settle(0, head, rungs);
        }
      }
    }
  }

  PageTable table;
  Tokens tokens;
};

// The tokens of a list, by what their values say, sorted.
std::vector<int> TokensIn(const PageTable& table, int head) {
  constexpr int kDim = ForkableTable::kDim;
  std::vector<float> keys, values;
  table.Read(0, head, &keys, &values);
  std::vector<int> found;
  for (size_t i = 0; i < values.size(); i += kDim) {
    const double sum = std::accumulate(&values[i], &values[i + kDim], 0.0);
    found.push_back(static_cast<int>(std::lround(-sum / kDim)) - 1);
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<int> FirstTokens(int count) {
  std::vector<int> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

TEST(PageTableTest, ForksShareFullPagesAndGoTheirOwnWay) {
  const auto pool = MakePool(60, ForkableTable::kDim);
  std::mt19937 rng(8);
  {
    ForkableTable a(pool.get());
    ForkableTable::AppendTo(a.table, a.tokens, 500, rng);
    EXPECT_EQ(a.table.forkable_tokens(), 384);  // 128 * 3: 464 tokens have left
    std::vector<PageTable> forks;
    for (int tokens : {0, 128, 384}) {
      const size_t before = pool->stats().used_bytes;
      forks.push_back(a.table.Fork(tokens));
      EXPECT_EQ(pool->stats().used_bytes, before);
      EXPECT_EQ(forks.back().num_tokens(), tokens);
      EXPECT_EQ(forks.back().forkable_tokens(), tokens);
      for (int head : {0, 1}) EXPECT_EQ(TokensIn(forks.back(), head), FirstTokens(tokens));
    }
    // All go on, the original as well; nobody sees another's tokens.
    ForkableTable::AppendTo(a.table, a.tokens, 100, rng);
    for (size_t i = 0; i < forks.size(); ++i) {
      ForkableTable::AppendTo(forks[i], a.tokens, 150 + 10 * static_cast<int>(i), rng);
    }
    for (int head : {0, 1}) {
      EXPECT_EQ(TokensIn(a.table, head), FirstTokens(600));
      for (const PageTable& fork : forks) {
        EXPECT_EQ(TokensIn(fork, head), FirstTokens(fork.num_tokens()));
      }
    }
    // A fork of a fork, after the original is gone.
    PageTable again = forks[2].Fork(forks[2].forkable_tokens());
    a.table = PageTable(pool.get(), {.num_layers = 1, .num_kv_heads = 1}, kExact, nullptr);
    forks.clear();
    EXPECT_EQ(TokensIn(again, 1), FirstTokens(again.num_tokens()));
    EXPECT_TRUE(pool->CheckInvariants().ok());
  }
  EXPECT_EQ(pool->stats().used_bytes, 0u);
}

TEST(PageTableTest, ASharedPageIsDemotedOnceForAllHolders) {
  const auto pool = MakePool(60, ForkableTable::kDim);
  std::mt19937 rng(8);
  ForkableTable a(pool.get());
  ForkableTable::AppendTo(a.table, a.tokens, 500, rng);
  PageTable fork = a.table.Fork(384);
  std::vector<PageTable*> tables = {&a.table, &fork};
  const size_t before = pool->stats().used_bytes;
  for (PageTable* table : tables) {
    for (int head : {0, 1}) {
      for (int i = 0; i < static_cast<int>(table->pages(0, head).size()); ++i) {
        const PageEntry page = table->pages(0, head)[i];
        const bool done = table->Demote(0, head, i, Rung::kK2V2, tables);
        EXPECT_EQ(done, i > 0 && i < table->num_settled_pages(0, head) && page.rung > Rung::kK2V2);
        if (done) {
          EXPECT_EQ(table->pages(0, head)[i].rung, Rung::kK2V2);
          EXPECT_EQ(table->pages(0, head)[i].tokens, page.tokens);
        }
      }
    }
  }
  std::map<uint32_t, size_t> held;
  for (const PageTable* table : {&a.table, &fork}) {
    for (int head : {0, 1}) {
      for (const PageEntry& page : table->pages(0, head)) {
        held[page.unit] = PageBytes(page.rung, ForkableTable::kDim);
      }
    }
  }
  size_t bytes = 0;
  for (const auto& [unit, page_bytes] : held) bytes += page_bytes;
  EXPECT_EQ(pool->stats().used_bytes, bytes);
  EXPECT_LT(bytes, before);
  for (int head : {0, 1}) {
    EXPECT_EQ(TokensIn(a.table, head), FirstTokens(500));
    EXPECT_EQ(TokensIn(fork, head), FirstTokens(384));
    // Pages of the fork's part are the same pages still.
    EXPECT_EQ(a.table.pages(0, head)[1].unit, fork.pages(0, head)[1].unit);
  }
  // Both go on, with pages that have free slots and have come down.
  ForkableTable::AppendTo(a.table, a.tokens, 150, rng);
  ForkableTable::AppendTo(fork, a.tokens, 150, rng);
  for (int head : {0, 1}) {
    EXPECT_EQ(TokensIn(a.table, head), FirstTokens(650));
    EXPECT_EQ(TokensIn(fork, head), FirstTokens(534));
  }
  EXPECT_TRUE(pool->CheckInvariants().ok());
}

// Whatever is left of many tables comes to lie in as few slabs as there can be, and reads as
// before.
TEST(PageTableTest, CompactionEmptiesSlabs) {
  const auto pool = MakePool(60, ForkableTable::kDim);
  std::mt19937 rng(9);
  std::vector<std::unique_ptr<ForkableTable>> tables;
  for (int i = 0; i < 20; ++i) tables.push_back(std::make_unique<ForkableTable>(pool.get()));
  for (int round = 0; round < 12; ++round) {  // so that they lie among each other
    for (const auto& table : tables) ForkableTable::AppendTo(table->table, table->tokens, 50, rng);
  }
  std::vector<PageTable> forks;
  for (int i = 0; i < 4; ++i) {
    forks.push_back(tables[i]->table.Fork(256, i % 2 == 0 ? Holder::kRequest : Holder::kCache));
  }
  tables.erase(tables.begin() + 3, tables.end() - 3);
  std::vector<PageTable*> all;
  for (const auto& table : tables) all.push_back(&table->table);
  for (PageTable& fork : forks) all.push_back(&fork);

  const PagePoolStats before = pool->stats();
  for (const size_t max_slabs : {size_t{1}, size_t{1000}}) {
    const size_t free_slabs = pool->stats().free_slabs;
    const size_t chosen = pool->BeginCompaction(max_slabs);
    EXPECT_GT(chosen, 0u);
    EXPECT_LE(chosen, max_slabs);
    for (PageTable* table : all) {
      for (int head : {0, 1}) table->Evacuate(0, head, all);
    }
    pool->EndCompaction();
    EXPECT_EQ(pool->stats().free_slabs, free_slabs + chosen);
    const absl::Status invariants = pool->CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants;
  }
  EXPECT_EQ(pool->BeginCompaction(1000), 0u);
  const PagePoolStats after = pool->stats();
  EXPECT_EQ(after.used_pages_by_rung, before.used_pages_by_rung);
  EXPECT_EQ(after.reclaimable_bytes, before.reclaimable_bytes);
  for (int i = 0; i < kNumRungs; ++i) {
    const size_t per_slab = PagePool::PagesPerSlab(static_cast<Rung>(i), ForkableTable::kDim);
    EXPECT_EQ(after.slabs_by_rung[i], (after.pages_by_rung[i] + per_slab - 1) / per_slab);
  }
  for (PageTable* table : all) {
    for (int head : {0, 1}) EXPECT_EQ(TokensIn(*table, head), FirstTokens(table->num_tokens()));
  }
}

TEST(PageTableTest, AFullPoolIsReportedAndTheTableStaysConsistent) {
  const auto pool = MakePool(1, 64);  // 32 FP16 pages
  {
    PageTable table(pool.get(), {.num_layers = 1, .num_kv_heads = 2}, kExact, nullptr);
    const Tokens tokens(400, 64);
    table.Append(0, 0, 400, tokens.From(0, 64));
    EXPECT_TRUE(table.status().ok());
    table.Append(0, 1, 400, tokens.From(0, 64));
    EXPECT_EQ(table.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(table.usage().page_bytes, pool->stats().used_bytes);
  }
  EXPECT_EQ(pool->stats().used_bytes, 0u);
  EXPECT_TRUE(pool->CheckInvariants().ok());
}

TEST(PageTableTest, PagesReturnWithTheTableAndMoveWithIt) {
  const auto pool = MakePool(2, 64);
  const Tokens tokens(17, 64);
  {
    PageTable a(pool.get(), {.num_layers = 1, .num_kv_heads = 1}, kExact, nullptr);
    a.Append(0, 0, 17, tokens.From(0, 64));
    PageTable b = std::move(a);
    EXPECT_EQ(pool->stats().used_bytes, 2 * PageBytes(Rung::kFp16, 64));
    a = PageTable(pool.get(), {.num_layers = 1, .num_kv_heads = 1}, kExact, nullptr);
    a.Append(0, 0, 1, tokens.From(0, 64));
    b = std::move(a);
  }
  EXPECT_EQ(pool->stats().used_bytes, 0u);
}

// The one who filled a page is gone, and has left tokens where the fork's are to go.
TEST(PageTableTest, AForkGoesOnWhereTheOriginalHasBeen) {
  const auto pool = MakePool(60, ForkableTable::kDim);
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 rng(seed);
    auto a = std::make_unique<ForkableTable>(pool.get());
    ForkableTable::AppendTo(a->table, a->tokens, 240, rng);  // 192 have left, a few behind the mark
    PageTable fork = a->table.Fork(128);
    const Tokens tokens = a->tokens;
    a.reset();
    ForkableTable::AppendTo(fork, tokens, 150, rng);
    for (int head : {0, 1}) EXPECT_EQ(TokensIn(fork, head), FirstTokens(278));
  }
}

// The block's mean is the average of the turned mean over its positions.
TEST(KeyMeansTest, BlocksAverageTheTurnedMean) {
  constexpr int kDim = 16;
  std::vector<float> frequencies(kDim / 2);
  for (int i = 0; i < kDim / 2; ++i) frequencies[i] = std::pow(10000.0f, -2.0f * i / kDim);
  std::vector<float> mean(2 * kDim);
  std::iota(mean.begin(), mean.end(), 1.0f);
  KeyMeans means(
      {.num_layers = 1, .num_kv_heads = 2, .head_dim = kDim, .inverse_frequencies = frequencies},
      mean);
  means.Prepare(1000);
  for (int block : {0, 1, 7}) {
    std::vector<double> expected(kDim);
    for (int p = block * 64; p < (block + 1) * 64; ++p) {
      for (int i = 0; i < kDim; i += 2) {
        const double angle = double{frequencies[i / 2]} * p, a = mean[kDim + i],
                     b = mean[kDim + i + 1];
        expected[i] += (a * std::cos(angle) - b * std::sin(angle)) / 64;
        expected[i + 1] += (a * std::sin(angle) + b * std::cos(angle)) / 64;
      }
    }
    std::vector<float> actual(means.mean(static_cast<uint16_t>(block), 0, 1),
                              means.mean(static_cast<uint16_t>(block), 0, 1) + kDim);
    RotateHadamard(actual.data(), kDim);
    for (int i = 0; i < kDim; ++i) EXPECT_NEAR(actual[i], expected[i], 1e-4) << block << " " << i;
  }
}

}  // namespace
}  // namespace whit
