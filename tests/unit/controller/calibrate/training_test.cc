#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "controller/calibrate/importance_training.h"
#include "controller/calibrate/learned_training.h"
#include "controller/calibrate/price_points.h"
#include "controller/calibrate/random.h"
#include "controller/calibrate/rung_costs.h"

namespace whit {
namespace {

constexpr int kPairs = 3;

// Importance of keys with a kink in the first feature, another level in each pair, and noise as
// heavy as in life; of values linear.
std::vector<ImportanceSample> MakeSamples(int count, uint64_t seed) {
  Random random(seed);
  std::vector<ImportanceSample> samples(count);
  for (ImportanceSample& sample : samples) {
    sample.pair = static_cast<int>(random.Below(kPairs));
    for (float& feature : sample.features) feature = static_cast<float>(2 * random.Normal() + 1);
    const float x = (sample.features[0] - 1) / 2, y = (sample.features[1] - 1) / 2;
    const auto noise = [&] { return -std::log(1 - static_cast<float>(random.Uniform())); };
    sample.importance = {std::exp(2 * std::abs(x) - 9 + static_cast<float>(sample.pair)) * noise(),
                         std::exp(y - 5) * noise()};
  }
  return samples;
}

std::vector<SamplesOfContext> MakeContexts() {
  return {{.context = 512,
           .learned = MakeSamples(6000, 1),
           .held_out = MakeSamples(2000, 2),
           .tokens = {}},
          {.context = 64,
           .learned = MakeSamples(3000, 3),
           .held_out = MakeSamples(1000, 4),
           .tokens = {}}};
}

// The network as controller/importance.h writes it.
std::array<double, 2> Importance(const ImportanceModel& model, const ImportanceSample& sample) {
  constexpr int kHidden = ImportanceModel::kHidden;
  const int pair = sample.pair;
  std::vector<double> h1(kHidden), h2(kHidden);
  for (int unit = 0; unit < kHidden; ++unit) {
    double sum = model.pair_bias1[pair * kHidden + unit];
    for (int f = 0; f < kNumImportanceFeatures; ++f) {
      const int at = pair * kNumImportanceFeatures + f;
      const double z = (sample.features[f] - model.centers[at]) / model.spreads[at];
      sum += std::clamp(z, -6.0, 6.0) * model.weights1[f * kHidden + unit];
    }
    h1[unit] = std::max(sum, 0.0);
  }
  for (int unit = 0; unit < kHidden; ++unit) {
    double sum = model.bias2[unit];
    for (int i = 0; i < kHidden; ++i) sum += h1[i] * model.weights2[i * kHidden + unit];
    h2[unit] = std::max(sum, 0.0);
  }
  std::array<double, 2> y;
  for (int kv = 0; kv < 2; ++kv) {
    y[kv] = model.pair_bias3[2 * pair + kv];
    for (int i = 0; i < kHidden; ++i) y[kv] += h2[i] * model.weights3[2 * i + kv];
    y[kv] = std::exp(y[kv]);
  }
  return y;
}

TEST(FitImportanceTest, NetworkBeatsLinearBeatsConstant) {
  ThreadPool pool(2);
  const std::vector<SamplesOfContext> contexts = MakeContexts();
  size_t last = 0;
  const ImportanceFit fit =
      FitImportance(contexts, kPairs, {.steps = 400, .batch_of_context = 512, .seed = 1}, pool,
                    [&](size_t steps) { last = steps; });
  EXPECT_EQ(last, 800);
  ASSERT_EQ(fit.held_out.size(), 2);
  for (size_t c = 0; c < 2; ++c) {
    const ImportanceLoss& loss = fit.held_out[c];
    EXPECT_EQ(loss.context, contexts[c].context);
    EXPECT_EQ(loss.samples, contexts[c].held_out.size());
    EXPECT_LT(loss.network, loss.linear - 0.05);
    EXPECT_LT(loss.linear, loss.constant - 0.05);
    EXPECT_NEAR(loss.constant, 1, 0.3);  // weights are bounded
  }
  // The folded model is the network that was trained, and close to the truth.
  double misses = 0;
  const std::vector<ImportanceSample>& samples = contexts[0].held_out;
  for (size_t i = 0; i < 500; ++i) {
    const std::array<double, 2> found = Importance(fit.model, samples[i]);
    for (int kv = 0; kv < 2; ++kv) {
      EXPECT_NEAR(found[kv] / fit.predicted[0][i][kv], 1, 1e-3);
    }
    const double x = (samples[i].features[0] - 1) / 2;
    misses += std::abs(std::log(found[0]) - (2 * std::abs(x) - 9 + samples[i].pair)) / 500;
  }
  EXPECT_LT(misses, 0.35);
}

TEST(FitImportanceTest, DoesNotDependOnThreads) {
  ThreadPool one(1), three(3);
  const std::vector<SamplesOfContext> contexts = MakeContexts();
  const ImportanceFitOptions options = {.steps = 20, .batch_of_context = 700, .seed = 1};
  const auto fit = [&](ThreadPool& pool) {
    return FitImportance(contexts, kPairs, options, pool, [](size_t) {});
  };
  const ImportanceFit a = fit(one), b = fit(three);
  EXPECT_EQ(a.model, b.model);  // bitwise
  EXPECT_EQ(a.predicted, b.predicted);
}

TEST(MeanSensitivitiesTest, ContextsWeighTheSame) {
  const auto sample = [](int pair, float importance, float key, float value) {
    ImportanceSample s = {.pair = pair, .features = {}, .importance = {importance, importance}};
    s.features[static_cast<size_t>(ImportanceFeature::kKeyNorm)] = std::log(key);
    s.features[static_cast<size_t>(ImportanceFeature::kValueNorm)] = std::log(value);
    return s;
  };
  const std::vector<SamplesOfContext> contexts = {
      {.context = 2,
       .learned = {sample(0, 1, 2, 3), sample(0, 3, 2, 3), sample(1, 1, 1, 1)},
       .held_out = {},
       .tokens = {}},
      {.context = 1,
       .learned = {sample(0, 4, 1, 1), sample(1, 2, 1, 2)},
       .held_out = {},
       .tokens = {}}};
  const std::vector<float> found = MeanSensitivities(contexts, 2);
  const std::vector<float> expected = {(2 * 4 + 4) / 2.0f, (2 * 9 + 4) / 2.0f, (1 + 2) / 2.0f,
                                       (1 + 8) / 2.0f};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-4) << i;
}

TEST(MeasurePricesTest, BitsFallAsThePriceRises) {
  std::vector<SamplesOfContext> contexts = MakeContexts();
  std::vector<std::vector<std::array<float, 2>>> predicted;
  for (const SamplesOfContext& context : contexts) {
    std::vector<std::array<float, 2>>& of = predicted.emplace_back();
    for (const ImportanceSample& sample : context.held_out) of.push_back(sample.importance);
  }
  const RungErrors errors = {.key = {0.2f, 0.01f, 0.0001f}, .value = {0.3f, 0.01f, 1e-4f}};
  const auto curve = MeasurePrices(contexts, predicted, errors, 64);
  ASSERT_GT(curve.size(), 32);
  EXPECT_NEAR(curve.front().bits, 8.25, 0.1);
  EXPECT_NEAR(curve.back().bits, 2.25, 0.1);
  for (size_t i = 1; i < curve.size(); ++i) {
    EXPECT_LE(curve[i].bits, curve[i - 1].bits);
    EXPECT_GT(curve[i].price, curve[i - 1].price);
    EXPECT_LT(curve[i - 1].bits - curve[i].bits, 0.6);
  }
  EXPECT_TRUE(MeasurePrices({}, {}, errors, 64).empty());
}

TEST(MeasurePricesTest, ATokenMovesWhereTheCostsSay) {
  // One token with importance and energy 1: from K8V8 to K8V4 and so on, when what the step saves
  // at the price is what it costs in error.
  std::vector<SamplesOfContext> contexts(1);
  contexts[0].held_out.resize(1);  // features 0: norms 1
  const auto curve = MeasurePrices(contexts, {{{1, 1}}},
                                   {.key = {0.5f, 0.02f, 0}, .value = {0.25f, 0.01f, 0}}, 64);
  ASSERT_FALSE(curve.empty());
  for (const PolicyFile::PricePoint& point : curve) {
    // Values lose 4 bits of 64 elements for 0.01, keys for 0.02; then 2 bits for 0.24 and 0.48.
    const float expected = point.price < 0.01f / 256   ? 8.25f
                           : point.price < 0.02f / 256 ? 6.25f
                           : point.price < 0.24f / 128 ? 4.25f
                           : point.price < 0.48f / 128 ? 3.25f
                                                       : 2.25f;
    EXPECT_NEAR(point.bits, expected, 1e-6) << point.price;
  }
}

TEST(RungCostsTest, CostsAreFoundAgain) {
  const std::array<float, 3> key_error = {0.12f, 0.009f, 3e-5f},
                             value_error = {0.12f, 0.009f, 3e-5f};
  const std::vector<float> sensitivities = {1, 2, 3, 1};  // 4 of keys, 3 of values
  const double floor = 1e-4, unit = 0.05;
  const auto keys = [&](double cost, int i) { return unit * 4 * cost * key_error[i]; };
  const auto values = [&](double cost, int i) { return unit * 3 * cost * value_error[i]; };
  RungDivergence divergence = {};
  const auto set = [&](Rung rung, double x) { divergence[static_cast<size_t>(rung)] = x + floor; };
  set(Rung::kK8V8, keys(1.5, 2) + values(1, 2));
  set(Rung::kK8V4, keys(1.5, 2) + values(1, 1));
  set(Rung::kK4V4, keys(1.5, 1) + values(1, 1));
  set(Rung::kK4V2, keys(1.5, 1) + values(3, 0));
  set(Rung::kK2V2, keys(4, 0) + values(3, 0));
  const RungCosts costs = CostsOf(divergence, sensitivities, key_error, value_error);
  EXPECT_NEAR(costs.value[0], 3, 1e-3);
  EXPECT_EQ(costs.value[1], 1);
  EXPECT_EQ(costs.value[2], 1);
  EXPECT_NEAR(costs.key[0], 4, 1e-3);
  EXPECT_NEAR(costs.key[1], 1.5, 1e-3);
  EXPECT_EQ(costs.key[2], costs.key[1]);

  // What is not measurable stays as it was found elsewhere.
  set(Rung::kK8V4, 0);
  const RungCosts unknown = CostsOf(divergence, sensitivities, key_error, value_error);
  EXPECT_EQ(unknown.key, RungCosts().key);
  EXPECT_EQ(unknown.value, RungCosts().value);
}

// Tokens whose entropy tells how much errors in them matter.
std::vector<SamplesOfContext> MakeTokens() {
  std::vector<SamplesOfContext> contexts(1);
  Random random(1);
  for (int i = 0; i < 4000; ++i) {
    TokenSample& token = contexts[0].tokens.emplace_back();
    token.features = {.entropy = static_cast<float>(random.Normal()),
                      .rarity = static_cast<float>(random.Normal()),
                      .attention_variance = 1e-4f * static_cast<float>(random.Uniform()),
                      .confidence = static_cast<float>(random.Uniform())};
    const float importance = std::exp(3 * std::abs(token.features.entropy));
    token.importance = {importance, importance};
  }
  return contexts;
}

TEST(FitLearnedTest, LearnsItsLabels) {
  ThreadPool one(1), two(2);
  const std::vector<SamplesOfContext> contexts = MakeTokens();
  const std::array<float, 3> key_error = {0.2f, 0.01f, 0.0001f}, value_error = {0.3f, 0.01f, 1e-4f};
  const auto train = [&](ThreadPool& pool, int steps) {
    return FitLearned(contexts, key_error, value_error, {.steps = steps, .batch = 600, .seed = 1},
                      pool, [](size_t) {});
  };
  const LearnedFit fit = train(two, 250);
  EXPECT_EQ(fit.tokens, 4000);
  EXPECT_GT(fit.held_out_accuracy, 0.9);
  double labelled = 0;
  for (size_t k = 0; k < 4; ++k) {
    labelled += fit.labelled[k];
    EXPECT_NEAR(fit.labelled[k], fit.chosen[k], 0.06);
  }
  EXPECT_NEAR(labelled, 1, 1e-9);
  EXPECT_NEAR(fit.labelled[0], 0.5, 0.01);

  // A dear enough cost leaves the labels nothing to say.
  const LearnedFit thrifty =
      FitLearned(contexts, key_error, value_error,
                 {.alpha = 1e-3, .beta = 10, .gamma = 0, .steps = 80, .batch = 600, .seed = 1}, two,
                 [](size_t) {});
  EXPECT_NEAR(thrifty.chosen[0], 1, 1e-9);
  EXPECT_EQ(train(one, 10).model, train(two, 10).model);  // bitwise
}

TEST(FitLearnedTest, TheModelIsWhatTheHeaderSays) {
  ThreadPool pool(2);
  const std::vector<SamplesOfContext> contexts = MakeTokens();
  const LearnedFit fit = FitLearned(contexts, {0.2f, 0.01f, 1e-4f}, {0.3f, 0.01f, 1e-4f},
                                    {.steps = 300, .batch = 512, .seed = 1}, pool, [](size_t) {});
  constexpr int kHidden = LearnedModel::kHidden;
  const LearnedModel& model = fit.model;
  int right = 0;
  for (int i = 0; i < 500; ++i) {
    const TokenSample& token = contexts[0].tokens[i];
    const float features[] = {token.features.entropy, token.features.rarity,
                              token.features.attention_variance, token.features.confidence};
    std::vector<double> h1(model.bias1.begin(), model.bias1.end());
    std::vector<double> h2(model.bias2.begin(), model.bias2.end());
    std::vector<double> y(model.bias3.begin(), model.bias3.end());
    for (int unit = 0; unit < kHidden; ++unit) {
      for (int f = 0; f < 4; ++f) {
        h1[unit] += (features[f] - model.centers[f]) / model.spreads[f] *
                    model.weights1[f * kHidden + unit];
      }
    }
    for (int unit = 0; unit < kHidden; ++unit) {
      for (int from = 0; from < kHidden; ++from) {
        h2[unit] += std::max(h1[from], 0.0) * model.weights2[from * kHidden + unit];
      }
    }
    for (int k = 0; k < 4; ++k) {
      for (int from = 0; from < kHidden; ++from) {
        y[k] += std::max(h2[from], 0.0) * model.weights3[from * 4 + k];
      }
    }
    const double errors[] = {0.2 * token.importance[0] + 0.3 * token.importance[1],
                             0.02 * token.importance[0], 2e-4 * token.importance[0], 0};
    int label = 0;
    while (errors[label] > fit.tolerance) ++label;
    right += std::max_element(y.begin(), y.end()) - y.begin() == label ? 1 : 0;
  }
  EXPECT_GT(right, 440);
}

}  // namespace
}  // namespace whit
