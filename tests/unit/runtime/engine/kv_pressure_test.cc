#include "runtime/engine/kv_pressure.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kvpool/page_pool.h"

namespace whit {
namespace {

constexpr int kDim = 64, kLists = 6;

KvTerms Adaptive(Rung floor) {
  return TermsOf(*ParsePrecisionPolicy("adaptive"), floor, kDefaultRing);
}

int64_t At(const std::array<int64_t, kNumRungs>& pages, Rung rung) {
  return pages[static_cast<size_t>(rung)];
}

TEST(GrowthOfTest, NothingComesOfNoTokens) {
  const KvGrowth growth = GrowthOf(Adaptive(Rung::kK2V2), {.tokens = 100}, Rung::kFp16, kLists);
  EXPECT_EQ(growth.pages, KvGrowth().pages);
  EXPECT_EQ(growth.pages_up_to, KvGrowth().pages_up_to);
}

TEST(GrowthOfTest, ExactTokensTakePagesAsTheyCome) {
  const KvTerms fp16 = TermsOf({}, Rung::kK2V2, kDefaultRing);
  const auto pages = [&](int tokens, int step) {
    return At(GrowthOf(fp16, {.tokens = tokens, .step_tokens = step}, Rung::kK2V2, kLists).pages,
              Rung::kFp16);
  };
  EXPECT_EQ(pages(0, 1), kLists);
  EXPECT_EQ(pages(1, 15), 0);
  EXPECT_EQ(pages(16, 1), kLists);
  EXPECT_EQ(pages(10, 100), 6 * kLists);
}

TEST(GrowthOfTest, ADecodedTokenTakesARingPageNowAndThenAndSettlesAnother) {
  // A ring of 48: with 48 + 15 behind the first page, the next token makes one leave.
  KvFill fill = {
      .tokens = 16 + 62, .settled_tokens = 16, .settled_pages = kLists, .step_tokens = 1};
  KvGrowth growth = GrowthOf(Adaptive(Rung::kK4V2), fill, Rung::kFp16, kLists);
  EXPECT_EQ(growth.pages, KvGrowth().pages);
  EXPECT_EQ(growth.pages_up_to, KvGrowth().pages_up_to);
  fill.tokens += 1;
  growth = GrowthOf(Adaptive(Rung::kK4V2), fill, Rung::kFp16, kLists);
  EXPECT_EQ(growth.pages, KvGrowth().pages);  // the ring's last page has a slot
  // Sixteen tokens may open a page of each of five rungs, none higher than the policy's highest.
  EXPECT_EQ(At(growth.pages_up_to, Rung::kK8V8), 5 * kLists);
  growth = GrowthOf(Adaptive(Rung::kK4V2), fill, Rung::kK4V4, kLists);
  EXPECT_EQ(At(growth.pages_up_to, Rung::kK4V4), 5 * kLists);
  growth = GrowthOf(Adaptive(Rung::kK4V2), fill, Rung::kK2V2, kLists);
  EXPECT_EQ(At(growth.pages_up_to, Rung::kK4V2), 5 * kLists);  // the floor
  // As many pages as there can be: no rung has more than one that is part-filled.
  fill.settled_tokens += 16;
  fill.tokens += 16;
  fill.settled_pages += 5 * kLists;
  growth = GrowthOf(Adaptive(Rung::kK4V2), fill, Rung::kFp16, kLists);
  EXPECT_EQ(At(growth.pages_up_to, Rung::kK8V8), kLists);
}

// Against every way in which the open pages may fall, by brute force over two rungs.
TEST(SlabsInUseTest, IsWhatTheWorstChoiceOfRungsTakes) {
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    PagePoolStats pool;
    KvGrowth growth;
    const auto per_slab = [](int rung) {
      return static_cast<int64_t>(PagePool::PagesPerSlab(static_cast<Rung>(rung), kDim));
    };
    for (int i = 0; i < kNumRungs; ++i) {
      pool.pages_by_rung[i] = rng() % 500;
      pool.slabs_by_rung[i] =
          (pool.pages_by_rung[i] + per_slab(i) - 1) / per_slab(i) + (rng() % 4 == 0 ? 1 : 0);
      growth.pages[i] = rng() % 3 == 0 ? rng() % 200 : 0;
    }
    const auto open = static_cast<int64_t>(rng() % 400);
    growth.pages_up_to[1] = open;
    int64_t worst = 0;
    for (int64_t lower = 0; lower <= open; ++lower) {
      int64_t slabs = 0;
      for (int i = 0; i < kNumRungs; ++i) {
        const int64_t more = i == 0 ? lower : i == 1 ? open - lower : 0;
        const int64_t pages = static_cast<int64_t>(pool.pages_by_rung[i]) + growth.pages[i] + more;
        slabs += std::max<int64_t>(static_cast<int64_t>(pool.slabs_by_rung[i]),
                                   (pages + per_slab(i) - 1) / per_slab(i));
      }
      worst = std::max(worst, slabs);
    }
    const auto estimate = static_cast<int64_t>(SlabsInUse(pool, growth, kDim));
    ASSERT_GE(estimate, worst);
    ASSERT_LE(estimate, worst + 1);
  }
}

// The promise of PagePool's top comment: what is usable fits once it is compacted.
TEST(SlabsInUseTest, UsableFootprintsFitCompacted) {
  std::mt19937 rng(4);
  for (int head_dim : {16, 64, 80, 128}) {
    for (int round = 0; round < 500; ++round) {
      const size_t slabs = 8 + rng() % 100;
      const size_t usable = PagePool::UsableBytes(slabs * PagePool::kSlabBytes);
      PagePoolStats pool = {.slabs = slabs};
      KvGrowth growth;
      while (true) {
        const int rung = static_cast<int>(rng() % kNumRungs);
        const size_t before = FootprintBytes(pool, growth, head_dim);
        const size_t page = PagePool::FootprintBytes(static_cast<Rung>(rung), head_dim);
        if (before + page > usable) break;
        const size_t count = 1 + rng() % std::min<size_t>(100, (usable - before) / page);
        if (rng() % 2 == 0) {
          pool.pages_by_rung[rung] += count;
        } else {
          (rng() % 2 == 0 ? growth.pages : growth.pages_up_to)[rung] += count;
        }
      }
      for (int i = 0; i < kNumRungs; ++i) {
        const size_t per_slab = PagePool::PagesPerSlab(static_cast<Rung>(i), head_dim);
        pool.slabs_by_rung[i] = (pool.pages_by_rung[i] + per_slab - 1) / per_slab;
      }
      // And one is free for the page that is written anew.
      ASSERT_LT(SlabsInUse(pool, growth, head_dim), slabs) << head_dim;
    }
  }
}

TEST(UpdatePressureTest, BetweenTheTwoSharesNothingChanges) {
  PressureState state;
  const auto at = [&](size_t used) { return state = UpdatePressure(state, used, 1600, 64); };
  EXPECT_FALSE(at(1500).relieving);
  EXPECT_TRUE(at(1501).relieving);
  state.ceiling = state.lowered_to = Rung::kK4V4;
  EXPECT_TRUE(at(1401).relieving);
  EXPECT_EQ(state.ceiling, Rung::kK4V4);
  EXPECT_FALSE(at(1400).relieving);
  EXPECT_FALSE(at(1450).relieving);
}

// Pages of 64 dimensions have 64 * 4.25 bits at K4V4, 64 * 6.25 at K8V4 and so on.
TEST(UpdatePressureTest, TheCeilingRisesWhereWhatIsHeldFitsAtTheNextRung) {
  PressureState state = {.ceiling = Rung::kK4V4, .lowered_to = Rung::kK4V4};
  const auto at = [&](size_t used) {
    return (state = UpdatePressure(state, used, 1600, 64)).ceiling;
  };
  EXPECT_EQ(at(1400), Rung::kK4V4);
  EXPECT_EQ(at(953), Rung::kK4V4);  // * 6.25 / 4.25 = 1401.5
  EXPECT_EQ(at(951), Rung::kK8V4);  // 1398.5
  EXPECT_EQ(at(951), Rung::kK8V4);  // though by itself that would fit at K8V8
  EXPECT_EQ(at(953), Rung::kK8V4);
  EXPECT_EQ(at(721), Rung::kK8V8);  // * 8.25 / 4.25 = 1399.6
  EXPECT_EQ(at(100), Rung::kFp16);
}

TEST(LowerCeilingTest, GoesDownByOneRungToTheLowestFloor) {
  EXPECT_EQ(LowerCeiling(Rung::kFp16, Rung::kK2V2), Rung::kK8V8);
  EXPECT_EQ(LowerCeiling(Rung::kK4V2, Rung::kK2V2), Rung::kK2V2);
  EXPECT_EQ(LowerCeiling(Rung::kK2V2, Rung::kK2V2), Rung::kK2V2);
  EXPECT_EQ(LowerCeiling(Rung::kK4V2, Rung::kK4V4), Rung::kK4V4);
}

}  // namespace
}  // namespace whit
