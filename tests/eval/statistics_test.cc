#include "tests/eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace whit::eval {
namespace {

TEST(QuantileTest, LiesBetweenTheNearestValues) {
  const std::vector<float> values = {40, 10, 30, 20, 50};
  EXPECT_EQ(Quantile(values, 0), 10);
  EXPECT_EQ(Quantile(values, 0.5), 30);
  EXPECT_NEAR(Quantile(values, 0.6), 34, 1e-5);
  EXPECT_EQ(Quantile(values, 1), 50);
  EXPECT_EQ(Quantile({7}, 0.99), 7);
  EXPECT_TRUE(std::isnan(Quantile({}, 0.5)));
}

TEST(MeanTest, WeighsBlocksByTheirTokens) {
  EXPECT_DOUBLE_EQ(Mean({{.sum = 10, .count = 1}, {.sum = 2, .count = 3}}), 3);
  EXPECT_TRUE(std::isnan(Mean({})));
}

// Of normal blocks the interval is that of the textbook, and holds the true mean as often as it
// says.
TEST(BootstrapMeanTest, CoversTheMean) {
  std::mt19937 rng(1);
  std::normal_distribution<double> normal(5, 2);
  constexpr int kBlocks = 50, kTrials = 200;
  int covered = 0;
  double width = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<Block> blocks;
    for (int i = 0; i < kBlocks; ++i) blocks.push_back({.sum = 10 * normal(rng), .count = 10});
    const Interval interval = BootstrapMean(blocks);
    covered += interval.low < 5 && 5 < interval.high ? 1 : 0;
    width += (interval.high - interval.low) / kTrials;
  }
  EXPECT_NEAR(width, 2 * 1.96 * 2 / std::sqrt(50.0), 0.05);
  EXPECT_GT(covered, kTrials * 0.89);
  EXPECT_LT(covered, kTrials * 0.985);
}

TEST(BootstrapMeanTest, DrawsWholeBlocksTheSameEachTime) {
  const std::vector<Block> blocks = {
      {.sum = 1, .count = 10}, {.sum = 30, .count = 10}, {.sum = 6, .count = 20}};
  const Interval interval = BootstrapMean(blocks);
  EXPECT_EQ(interval.low, BootstrapMean(blocks).low);
  EXPECT_FLOAT_EQ(interval.low, 0.1);  // three times the first
  EXPECT_FLOAT_EQ(interval.high, 3);
  // Blocks that are alike have no spread.
  const Interval none = BootstrapMean({{.sum = 5, .count = 10}, {.sum = 10, .count = 20}});
  EXPECT_FLOAT_EQ(none.low, 0.5);
  EXPECT_FLOAT_EQ(none.high, 0.5);
}

TEST(BootstrapMeanTest, KnowsNoSpreadOfASingleBlock) {
  EXPECT_TRUE(std::isnan(BootstrapMean({{.sum = 5, .count = 10}}).low));
}

TEST(McNemarTest, MatchesTheBinomialDistribution) {
  EXPECT_EQ(McNemarP(0, 0), 1);
  EXPECT_EQ(McNemarP(4, 4), 1);
  EXPECT_NEAR(McNemarP(0, 5), 2.0 / 32, 1e-12);
  EXPECT_NEAR(McNemarP(2, 10), 2 * (1 + 12 + 66) / 4096.0, 1e-12);
  EXPECT_NEAR(McNemarP(10, 2), McNemarP(2, 10), 1e-15);
  EXPECT_NEAR(McNemarP(4000, 4000 + 175), 0.0543, 5e-4);  // 174 over the root of 8175
}

}  // namespace
}  // namespace whit::eval
