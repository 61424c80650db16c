#include "controller/learned_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <vector>

#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

LearnedModel RandomModel() {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  const auto random = [&](size_t size, float scale) {
    std::vector<float> values(size);
    for (float& v : values) v = scale * normal(rng);
    return values;
  };
  constexpr size_t kHidden = LearnedModel::kHidden;
  return {.centers = {2, 5, 0.01f, 0.4f},
          .spreads = {1.5f, 2, 0.02f, 0.3f},
          .weights1 = random(4 * kHidden, 0.5f),
          .bias1 = random(kHidden, 0.3f),
          .weights2 = random(kHidden * kHidden, 0.12f),
          .bias2 = random(kHidden, 0.3f),
          .weights3 = random(kHidden * 4, 0.2f),
          .bias3 = {0.1f, 0, -0.1f, 0}};
}

std::array<double, 4> ReferenceScores(const LearnedModel& model, const TokenFeatures& token) {
  constexpr int kHidden = LearnedModel::kHidden;
  const float features[] = {token.entropy, token.rarity, token.attention_variance,
                            token.confidence};
  std::vector<double> h1(kHidden), h2(kHidden);
  for (int o = 0; o < kHidden; ++o) {
    double sum = model.bias1[o];
    for (int f = 0; f < 4; ++f) {
      sum += (features[f] - model.centers[f]) / model.spreads[f] * model.weights1[f * kHidden + o];
    }
    h1[o] = std::max(0.0, sum);
  }
  for (int o = 0; o < kHidden; ++o) {
    double sum = model.bias2[o];
    for (int i = 0; i < kHidden; ++i) sum += h1[i] * model.weights2[i * kHidden + o];
    h2[o] = std::max(0.0, sum);
  }
  std::array<double, 4> scores;
  for (int c = 0; c < 4; ++c) {
    scores[c] = model.bias3[c];
    for (int i = 0; i < kHidden; ++i) scores[c] += h2[i] * model.weights3[i * 4 + c];
  }
  return scores;
}

TEST(LearnedPolicyTest, ChoosesTheLargestOutputOnEveryTarget) {
  const LearnedModel model = RandomModel();
  const LearnedPolicy policy(model);
  std::mt19937 rng(2);
  std::uniform_real_distribution<float> uniform;
  std::vector<TokenFeatures> features(200);
  for (TokenFeatures& f : features) {
    f = {.entropy = 6 * uniform(rng),
         .rarity = 9 * uniform(rng),
         .attention_variance = 0.05f * uniform(rng),
         .confidence = uniform(rng)};
  }
  ForEachSimdTarget([&] {
    std::vector<Rung> rungs(features.size());
    policy.Decide({.count = static_cast<int>(features.size()), .features = features},
                  absl::MakeSpan(rungs));
    for (size_t i = 0; i < features.size(); ++i) {
      const std::array<double, 4> scores = ReferenceScores(model, features[i]);
      const auto chosen = std::find(kLearnedRungs.begin(), kLearnedRungs.end(), rungs[i]);
      ASSERT_NE(chosen, kLearnedRungs.end());
      EXPECT_GE(scores[chosen - kLearnedRungs.begin()],
                *std::max_element(scores.begin(), scores.end()) - 1e-3);
    }
    EXPECT_GT((std::set<Rung>(rungs.begin(), rungs.end()).size()), 1u);
  });
}

TEST(LearnedPolicyTest, AllLayersAndHeadsDecideAlike) {
  const LearnedModel model = RandomModel();
  const LearnedPolicy policy(model);
  std::vector<TokenFeatures> features(16, {.entropy = 3, .rarity = 2, .confidence = 0.1f});
  std::vector<Rung> first(16), other(16);
  policy.Decide({.layer = 0, .count = 16, .features = features}, absl::MakeSpan(first));
  policy.Decide({.layer = 7, .kv_head = 2, .count = 16, .features = features},
                absl::MakeSpan(other));
  EXPECT_EQ(first, other);
}

}  // namespace
}  // namespace whit
