#include "tests/eval/logit_comparison.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/unit/support/simd_targets.h"

namespace whit::eval {
namespace {

std::vector<float> RandomLogits(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(-3, 4);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

double LogSumExp(const std::vector<float>& logits) {
  double sum = 0;
  for (float x : logits) sum += std::exp(double{x});
  return std::log(sum);
}

double Reference(const std::vector<float>& p, const std::vector<float>& q) {
  const double log_p_sum = LogSumExp(p), log_q_sum = LogSumExp(q);
  double divergence = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    divergence += std::exp(p[i] - log_p_sum) * ((p[i] - log_p_sum) - (q[i] - log_q_sum));
  }
  return divergence;
}

double Divergence(const std::vector<float>& p, const std::vector<float>& q) {
  return KlDivergence(MakeLogitRow(p.data(), p.size()), MakeLogitRow(q.data(), q.size()));
}

TEST(KlDivergenceTest, MatchesTheFormulaNearAndFar) {
  ForEachSimdTarget([] {
    for (size_t n : {1, 2, 7, 16, 17, 100, 511, 513, 5000, 49152}) {
      const std::vector<float> p = RandomLogits(n, 1);
      for (float distance : {1e-3f, 0.1f, 3.0f}) {
        std::vector<float> q = RandomLogits(n, 2);
        for (size_t i = 0; i < n; ++i) q[i] = p[i] + distance * q[i] + 0.5f;
        const double expected = Reference(p, q);
        EXPECT_NEAR(Divergence(p, q), expected, 5e-7 + 1e-7 * distance + 1e-6 * expected)
            << n << " " << distance;
      }
    }
  });
}

TEST(KlDivergenceTest, IsExactlyZeroForEqualRows) {
  ForEachSimdTarget([] {
    for (size_t n : {1, 100, 49152}) {
      const std::vector<float> p = RandomLogits(n, 3);
      EXPECT_EQ(Divergence(p, p), 0) << n;
    }
  });
}

TEST(KlDivergenceTest, IgnoresWhatBothThinkImpossible) {
  std::vector<float> p = RandomLogits(1000, 4), q = RandomLogits(1000, 5);
  const double before = Divergence(p, q);
  p.insert(p.end(), 40, -1000.0f);
  q.insert(q.end(), 40, -2000.0f);
  EXPECT_NEAR(Divergence(p, q), before, 1e-6 * before);
}

TEST(LogitRowTest, KnowsItsLargestAndItsProbabilities) {
  std::vector<float> logits = RandomLogits(777, 6);
  logits[345] = 20;
  const LogitRow row = MakeLogitRow(logits.data(), logits.size());
  EXPECT_EQ(row.arg_max, 345u);
  EXPECT_NEAR(row.LogProbability(12), logits[12] - LogSumExp(logits), 1e-5);
}

}  // namespace
}  // namespace whit::eval
