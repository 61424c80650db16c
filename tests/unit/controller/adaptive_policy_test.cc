#include "controller/adaptive_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "controller/generic_importance.h"
#include "controller/price.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

constexpr int kLayers = 2, kKvHeads = 3, kHeads = 9;

// Tokens with all that may be observed of them.
struct Observed {
  Observed(int count, int head_dim, uint32_t seed)
      : sum(count),
        squares(count),
        recent(count),
        keys(count * head_dim),
        values(count * head_dim),
        mean(head_dim) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    for (auto* list : {&sum, &squares, &recent}) {
      for (float& x : *list) x = std::exp(2 * normal(rng) - 3);
    }
    for (auto* list : {&keys, &values, &mean}) {
      for (float& x : *list) x = normal(rng);
    }
    tokens = {.layer = 1,
              .kv_head = 2,
              .first_position = 48,
              .count = count,
              .context = 48 + count + 100,
              .head_dim = head_dim,
              .query_heads = kHeads / kKvHeads,
              .received = {.sum = sum.data(), .squares = squares.data(), .recent = recent.data()},
              .keys = keys.data(),
              .values = values.data(),
              .key_mean = mean.data(),
              .price = 1e-3};
  }

  std::vector<float> sum, squares, recent, keys, values, mean;
  LeavingTokens tokens;
};

ImportanceModel RandomModel(int head_dim, uint32_t seed) {
  constexpr size_t kPairs = kLayers * kKvHeads, kHidden = ImportanceModel::kHidden;
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  const auto random = [&](size_t size, float scale) {
    std::vector<float> values(size);
    for (float& v : values) v = scale * normal(rng);
    return values;
  };
  ImportanceModel model = {.centers = random(kPairs * kNumImportanceFeatures, 2),
                           .spreads = random(kPairs * kNumImportanceFeatures, 1),
                           .pair_bias1 = random(kPairs * kHidden, 0.5f),
                           .weights1 = random(kNumImportanceFeatures * kHidden, 0.3f),
                           .weights2 = random(kHidden * kHidden, 0.15f),
                           .bias2 = random(kHidden, 0.3f),
                           .weights3 = random(kHidden * 2, 0.2f),
                           .pair_bias3 = random(kPairs * 2, 0.5f),
                           .query_means = random(size_t{1} * kLayers * kHeads * head_dim, 1),
                           .key_error = {0.25f, 0.01f, 1e-4f},
                           .value_error = {0.35f, 0.01f, 1e-4f}};
  for (float& spread : model.spreads) spread = 0.5f + std::abs(spread);
  return model;
}

double SquaredNorm(const float* x, const float* mean, int head_dim) {
  double sum = 0;
  for (int i = 0; i < head_dim; ++i) {
    const double difference = double{x[i]} - (mean == nullptr ? 0 : mean[i]);
    sum += difference * difference;
  }
  return sum;
}

// importance.h, word by word.
std::vector<double> ReferenceFeatures(const LeavingTokens& t, int i, const ImportanceModel& model) {
  const auto log = [](double x) { return std::log(std::max(x, 1e-12)); };
  const int position = t.first_position + i;
  const double queries = t.context - position;
  const float* key = t.keys + i * t.head_dim;
  double expected = 0;
  for (int head = 0; head < t.query_heads; ++head) {
    const float* mean = model.query_means.data() +
                        ((t.layer * kKvHeads + t.kv_head) * t.query_heads + head) * t.head_dim;
    double dot = 0;
    for (int d = 0; d < t.head_dim; ++d) dot += double{key[d]} * mean[d];
    expected += std::exp(dot / std::sqrt(t.head_dim));
  }
  return {log(t.received.sum[i] / queries),
          log(t.received.squares[i] / queries),
          log(t.received.recent[i]),
          log(std::sqrt(SquaredNorm(key, t.key_mean, t.head_dim))),
          log(std::sqrt(SquaredNorm(t.values + i * t.head_dim, nullptr, t.head_dim))),
          log(expected),
          log(queries),
          log(position + 1)};
}

std::vector<double> ReferenceImportance(const std::vector<double>& features, int pair,
                                        const ImportanceModel& model) {
  constexpr int kHidden = ImportanceModel::kHidden;
  std::vector<double> h1(kHidden), h2(kHidden);
  for (int o = 0; o < kHidden; ++o) {
    double sum = model.pair_bias1[pair * kHidden + o];
    for (int f = 0; f < kNumImportanceFeatures; ++f) {
      const int index = pair * kNumImportanceFeatures + f;
      const double z =
          std::clamp((features[f] - model.centers[index]) / model.spreads[index], -6.0, 6.0);
      sum += z * model.weights1[f * kHidden + o];
    }
    h1[o] = std::max(0.0, sum);
  }
  for (int o = 0; o < kHidden; ++o) {
    double sum = model.bias2[o];
    for (int i = 0; i < kHidden; ++i) sum += h1[i] * model.weights2[i * kHidden + o];
    h2[o] = std::max(0.0, sum);
  }
  std::vector<double> y(2);
  for (int o = 0; o < 2; ++o) {
    y[o] = model.pair_bias3[2 * pair + o];
    for (int i = 0; i < kHidden; ++i) y[o] += h2[i] * model.weights3[2 * i + o];
  }
  return y;
}

ModelIdentity Identity(int head_dim) {
  return {.num_layers = kLayers, .num_kv_heads = kKvHeads, .head_dim = head_dim};
}

TEST(AdaptivePolicyTest, PredictsWhatTheScalarNetworkDoesOnEveryTarget) {
  for (const int head_dim : {16, 64, 80}) {
    const ImportanceModel model = RandomModel(head_dim, head_dim);
    const AdaptivePolicy policy(Identity(head_dim), model);
    for (const int count : {1, 5, 16}) {
      const Observed observed(count, head_dim, count);
      ForEachSimdTarget([&] {
        ImportanceFeatureBlock block;
        float logs[kTileTokens][2];
        policy.PredictImportance(observed.tokens, 0, count, &block, logs[0]);
        for (int i = 0; i < count; ++i) {
          const std::vector<double> features = ReferenceFeatures(observed.tokens, i, model);
          for (int f = 0; f < kNumImportanceFeatures; ++f) {
            EXPECT_NEAR(block.features[f][i], features[f], 1e-4 * (1 + std::abs(features[f])));
          }
          const std::vector<double> y = ReferenceImportance(features, 1 * kKvHeads + 2, model);
          EXPECT_NEAR(logs[i][0], y[0], 2e-3);
          EXPECT_NEAR(logs[i][1], y[1], 2e-3);
        }
      });
    }
  }
}

TEST(AdaptivePolicyTest, GivesTheCheapestRungAndFewerBitsAtAHigherPrice) {
  const ImportanceModel model = RandomModel(64, 7);
  const AdaptivePolicy policy(Identity(64), model);
  const RungErrors errors = {.key = model.key_error, .value = model.value_error};
  Observed observed(40, 64, 3);
  double bits_before = 100;
  for (const double price : {0.0, 1e-4, 1e-3, 1e-2, 1.0, 1e9}) {
    observed.tokens.price = price;
    std::vector<Rung> rungs(40);
    policy.Decide(observed.tokens, absl::MakeSpan(rungs));
    double bits = 0;
    for (int i = 0; i < 40; ++i) {
      ImportanceFeatureBlock block;
      float logs[2];
      policy.PredictImportance(observed.tokens, i, 1, &block, logs);
      EXPECT_EQ(rungs[i],
                CheapestRung(std::exp(logs[0]) * block.key_squares[0],
                             std::exp(logs[1]) * block.value_squares[0], errors, price, 64));
      bits += PackedBits(rungs[i], 64) / 40;
    }
    EXPECT_LE(bits, bits_before);
    bits_before = bits;
  }
  EXPECT_NEAR(bits_before, 2.25, 1e-9);
}

TEST(AdaptivePolicyTest, WithoutAMeanKeysAreTakenAsTheyAre) {
  Observed observed(3, 64, 1);
  observed.tokens.key_mean = nullptr;
  ImportanceFeatureBlock block;
  ExtractImportanceFeatures(observed.tokens, 0, 3, {}, &block);
  EXPECT_NEAR(block.key_squares[1], SquaredNorm(observed.keys.data() + 64, nullptr, 64), 1e-3);
}

TEST(ExpectedAttentionTest, ManyQueryHeadsAreSummed) {
  // More heads than are worked on at once.
  constexpr int kManyHeads = 40, kHeadDim = 16;
  Observed observed(4, kHeadDim, 9);
  std::vector<float> means(kManyHeads * kHeadDim);
  std::mt19937 rng(2);
  for (float& m : means) m = std::normal_distribution<float>()(rng);
  ImportanceFeatureBlock block;
  ExtractImportanceFeatures(observed.tokens, 0, 4, means, &block);
  for (int i = 0; i < 4; ++i) {
    double sum = 0;
    for (int head = 0; head < kManyHeads; ++head) {
      double dot = 0;
      for (int d = 0; d < kHeadDim; ++d) {
        dot += double{observed.keys[i * kHeadDim + d]} * means[head * kHeadDim + d];
      }
      sum += std::exp(dot / 4);
    }
    const auto row = static_cast<size_t>(ImportanceFeature::kExpectedAttention);
    EXPECT_NEAR(block.features[row][i], std::log(sum), 1e-4);
  }
}

// Tokens that received an even share of attention on average, and `recently` times that of late.
Observed Attended(int count, float recently) {
  Observed observed(count, 64, 5);
  for (int i = 0; i < count; ++i) {
    const float share = EvenAttentionShare(observed.tokens, 48 + i);
    observed.sum[i] = share * static_cast<float>(observed.tokens.context - 48 - i);
    observed.recent[i] = recently * share / (1 - kRecentDecay);
  }
  observed.tokens.price = std::exp(PricesOf(nullptr, 64).LogPrice(3.5));
  return observed;
}

double GenericBits(const Observed& observed) {
  std::vector<Rung> rungs(observed.tokens.count);
  GenericAdaptivePolicy().Decide(observed.tokens, absl::MakeSpan(rungs));
  double bits = 0;
  for (const Rung rung : rungs) bits += PackedBits(rung, 64) / observed.tokens.count;
  return bits;
}

TEST(GenericAdaptivePolicyTest, WhatIsStillAttendedGetsMoreBits) {
  EXPECT_GT(GenericBits(Attended(32, 20)), GenericBits(Attended(32, 1)));
  EXPECT_GT(GenericBits(Attended(32, 1)), GenericBits(Attended(32, 0.05f)));
}

TEST(GenericAdaptivePolicyTest, LargeKeysGetMoreBits) {
  Observed observed = Attended(32, 1);
  const double bits = GenericBits(observed);
  for (float& x : observed.keys) x *= 6;
  observed.tokens.key_mean = nullptr;
  EXPECT_GT(GenericBits(observed), bits);
}

}  // namespace
}  // namespace whit
