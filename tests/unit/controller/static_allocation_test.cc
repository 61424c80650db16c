#include "controller/static_allocation.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

namespace whit {
namespace {

constexpr RungErrors kErrors = {.key = {0.2f, 0.01f, 1e-4f}, .value = {0.3f, 0.01f, 1e-4f}};
constexpr int kHeadDim = 64;

struct Total {
  double bits = 0, loss = 0;
};

Total Sum(const std::vector<float>& sensitivities, const std::vector<Rung>& rungs) {
  Total total;
  for (size_t pair = 0; pair < rungs.size(); ++pair) {
    total.bits += PackedBits(rungs[pair], kHeadDim) / static_cast<double>(rungs.size());
    total.loss += Loss(rungs[pair], sensitivities[2 * pair], sensitivities[2 * pair + 1], kErrors);
  }
  return total;
}

std::vector<float> RandomSensitivities(int pairs, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> sensitivities(2 * pairs);
  for (float& s : sensitivities) s = std::exp(1.5f * normal(rng));
  return sensitivities;
}

TEST(AllocateRungsTest, SpendsTheBudgetAndNoMore) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> sensitivities = RandomSensitivities(90, seed);
    double loss_before = std::numeric_limits<double>::infinity();
    for (const double bits : {2.25, 2.5, 3.0, 3.5, 4.25, 6.0, 8.25}) {
      const Total total = Sum(sensitivities, AllocateRungs(sensitivities, kErrors, kHeadDim, bits));
      EXPECT_LE(total.bits, bits + 1e-9);
      EXPECT_GT(total.bits, bits - 4.0 / 90);  // less than the largest step is left
      EXPECT_LT(total.loss, loss_before);
      loss_before = total.loss;
    }
  }
}

// No assignment within the same bits loses less than what was found, but for the last step.
TEST(AllocateRungsTest, IsCloseToTheBestOfAll) {
  constexpr int kPairs = 5;
  for (uint32_t seed = 0; seed < 10; ++seed) {
    const std::vector<float> sensitivities = RandomSensitivities(kPairs, seed);
    const std::vector<Rung> found = AllocateRungs(sensitivities, kErrors, kHeadDim, 4.0);
    const Total total = Sum(sensitivities, found);
    double best = std::numeric_limits<double>::infinity();
    for (int code = 0; code < 5 * 5 * 5 * 5 * 5; ++code) {
      std::vector<Rung> rungs;
      for (int rest = code; rungs.size() < kPairs; rest /= 5) {
        rungs.push_back(kQuantizedRungs[rest % 5]);
      }
      const Total other = Sum(sensitivities, rungs);
      if (other.bits <= total.bits + 1e-9) best = std::min(best, other.loss);
    }
    EXPECT_LE(total.loss, best * 1.2) << seed;
  }
}

TEST(AllocateRungsTest, WhatMattersMoreGetsMore) {
  const std::vector<float> sensitivities = {100, 100, 1, 1, 0, 0};
  const std::vector<Rung> rungs = AllocateRungs(sensitivities, kErrors, kHeadDim, 4.25);
  EXPECT_GT(rungs[0], rungs[1]);
  EXPECT_EQ(rungs[2], Rung::kK2V2);
  // Where even the lowest rung takes more, all get it.
  for (const Rung rung : AllocateRungs(sensitivities, kErrors, 16, 2.25)) {
    EXPECT_EQ(rung, Rung::kK2V2);
  }
}

TEST(StaticAllocatedPolicyTest, DecidesByLayerAndHead) {
  PolicyFile file = {.model = {.num_layers = 2, .num_kv_heads = 2, .head_dim = kHeadDim},
                     .sensitivities = {0, 0, 0, 0, 1000, 1000, 0, 0}};
  const StaticAllocatedPolicy policy(file, 3.75);
  std::vector<Rung> rungs(3);
  policy.Decide({.layer = 1, .kv_head = 0, .count = 3}, absl::MakeSpan(rungs));
  EXPECT_EQ(rungs, std::vector<Rung>(3, Rung::kK8V8));
  policy.Decide({.layer = 1, .kv_head = 1, .count = 3}, absl::MakeSpan(rungs));
  EXPECT_EQ(rungs, std::vector<Rung>(3, Rung::kK2V2));
}

}  // namespace
}  // namespace whit
