#include "controller/decision_tally.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace whit {
namespace {

TEST(DecisionTallyTest, CountsDecisionsOfAllThreads) {
  constexpr int kThreads = 4, kTokens = 64;
  DecisionTally tally(kTokens);
  std::vector<std::thread> threads;
  for (int layer = 0; layer < kThreads; ++layer) {
    threads.emplace_back([&, layer] {
      // Even layers keep K4V4, odd ones K2V2; the first page is not decided.
      const std::vector<Rung> rungs(16, layer % 2 == 0 ? Rung::kK4V4 : Rung::kK2V2);
      for (int position = 16; position < kTokens; position += 16) {
        tally.Add({.layer = layer, .first_position = position, .count = 16, .head_dim = 64}, rungs);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const DecisionTally::Counts counts = tally.counts();
  EXPECT_EQ(counts[static_cast<size_t>(Rung::kK4V4)], 2 * 48);
  EXPECT_EQ(counts[static_cast<size_t>(Rung::kK2V2)], 2 * 48);
  EXPECT_EQ(NumDecisions(counts), 4 * 48);
  EXPECT_EQ(MeanPackedBits(counts, 64), 3.25);
  EXPECT_EQ(tally.MeanBits(15, 64), 0);
  EXPECT_EQ(tally.MeanBits(16, 64), 3.25);
  EXPECT_EQ(tally.MeanBits(kTokens, 64), 0);
}

TEST(DecisionTallyTest, TokensAreCountedOneByOneOnlyIfAskedFor) {
  DecisionTally tally;
  tally.Add({.count = 1, .head_dim = 64}, {Rung::kK8V8});
  EXPECT_EQ(NumDecisions(tally.counts()), 1);
  EXPECT_EQ(tally.MeanBits(0, 64), 0);
  EXPECT_EQ(MeanPackedBits(DecisionTally().counts(), 64), 0);
}

}  // namespace
}  // namespace whit
