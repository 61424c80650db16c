#include "runtime/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

namespace whit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomLogits(size_t n, uint32_t seed, float spread = 3) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

std::vector<int32_t> ByLikelihood(const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return ids;
}

// What FilterCandidates promises, step by step on the sorted vocabulary.
std::set<int32_t> ReferenceFilter(const SamplingParams& params, const std::vector<float>& logits) {
  std::vector<int32_t> ids = ByLikelihood(logits);
  if (params.top_k > 0 && params.top_k < static_cast<int>(ids.size())) ids.resize(params.top_k);
  const auto weight = [&](int32_t id) {
    return std::exp((double{logits[id]} - logits[ids[0]]) / params.temperature);
  };
  double total = 0;
  for (int32_t id : ids) total += weight(id);
  double mass = 0;
  size_t kept = 0;
  while (kept < ids.size() && (params.top_p == 1 || mass < params.top_p * total)) {
    mass += weight(ids[kept++]);
  }
  ids.resize(kept);
  while (weight(ids.back()) < params.min_p) ids.pop_back();
  return {ids.begin(), ids.end()};
}

std::set<int32_t> Kept(const SamplingParams& params, const std::vector<float>& logits) {
  SamplerScratch scratch;
  FilterCandidates(params, logits, scratch);
  std::set<int32_t> ids;
  int32_t previous = -1;
  for (const Candidate& c : scratch.candidates) {
    EXPECT_GT(c.id, previous) << "not in order of ids";
    previous = c.id;
    ids.insert(c.id);
  }
  return ids;
}

TEST(SelectLikeliestTest, AgreesWithSortingForEverySize) {
  for (size_t n : {1, 2, 63, 64, 65, 1000, 20000}) {
    std::vector<float> logits = RandomLogits(n, static_cast<uint32_t>(n));
    for (size_t i = 0; i < n; i += 3) logits[i] = std::round(logits[i]);  // many ties
    const std::vector<int32_t> sorted = ByLikelihood(logits);
    for (size_t k : {0, 1, 2, 20, 64, 100, 5000, 30000}) {
      std::vector<Candidate> selected;
      SelectLikeliest(logits, k, selected);
      std::set<int32_t> ids;
      for (const Candidate& c : selected) {
        ids.insert(c.id);
        EXPECT_EQ(c.logit, logits[c.id]);
      }
      const std::set<int32_t> expected(sorted.begin(), sorted.begin() + std::min(k, n));
      EXPECT_EQ(ids, expected) << n << " " << k;
    }
  }
}

TEST(FilterCandidatesTest, EachFilterKeepsExactlyWhatItShould) {
  for (size_t n : {5, 100, 2000}) {
    for (float spread : {0.05f, 1.0f, 5.0f}) {
      const std::vector<float> logits = RandomLogits(n, 7, spread);
      for (float temperature : {0.3f, 1.0f, 10.0f}) {
        for (int top_k : {0, 1, 3, 50, 100000}) {
          for (float top_p : {1e-6f, 0.3f, 0.9f, 0.999f, 1.0f}) {
            for (float min_p : {0.0f, 0.05f, 0.9f, 1.0f}) {
              const SamplingParams params = {
                  .temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p};
              ASSERT_EQ(Kept(params, logits), ReferenceFilter(params, logits))
                  << "n " << n << " spread " << spread << " temperature " << temperature
                  << " top_k " << top_k << " top_p " << top_p << " min_p " << min_p;
            }
          }
        }
      }
    }
  }
}

TEST(FilterCandidatesTest, EqualLogitsGoByLowestId) {
  const std::vector<float> logits(1000, 2.5f);
  EXPECT_EQ(Kept({.temperature = 1, .top_k = 3}, logits), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(Kept({.temperature = 1, .top_p = 0.0035f}, logits), (std::set<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(Kept({.temperature = 1, .min_p = 1}, logits).size(), 1000u);
}

// Chi-square of `draws` draws against softmax(logits / temperature) over the kept tokens.
double ChiSquare(const SamplingParams& params, const std::vector<float>& logits, int draws,
                 int* degrees) {
  std::vector<double> expected(logits.size(), 0);
  double total = 0;
  for (int32_t id : ReferenceFilter(params, logits)) {
    total += expected[id] = std::exp(logits[id] / params.temperature);
  }
  std::vector<int> counts(logits.size(), 0);
  Sampler sampler(params, {});
  SamplerScratch scratch;
  for (int i = 0; i < draws; ++i) ++counts[sampler.Next(logits, scratch)];
  double chi_square = 0;
  *degrees = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double mean = expected[i] / total * draws;
    if (mean == 0) {
      EXPECT_EQ(counts[i], 0) << "drew a token that was filtered out";
      continue;
    }
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
    ++*degrees;
  }
  return chi_square;
}

TEST(SamplerTest, DrawsFollowTheDistribution) {
  const std::vector<float> logits = RandomLogits(40, 3, 1);
  for (SamplingParams params : {SamplingParams{.temperature = 1},
                                {.temperature = 2},
                                {.temperature = 1, .top_k = 10},
                                {.temperature = 1, .top_p = 0.8f},
                                {.temperature = 1.5f, .top_k = 30, .top_p = 0.9f, .min_p = 0.1f}}) {
    for (uint64_t seed : {0, 1}) {
      params.seed = seed;
      int degrees;
      const double chi_square = ChiSquare(params, logits, 20000, &degrees);
      ASSERT_GT(degrees, 3);
      // Mean `degrees`, variance twice that; five deviations for fixed seeds.
      EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2.0 * degrees)) << "seed " << seed;
    }
  }
}

TEST(SamplerTest, TheSeedAloneDecides) {
  const std::vector<float> logits = RandomLogits(1000, 5, 1);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed}, {});
    SamplerScratch scratch;
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.Next(logits, scratch));
    return ids;
  };
  EXPECT_EQ(draw(42), draw(42));
  EXPECT_NE(draw(42), draw(43));
}

// Pinned: the draws of equal weights are the random numbers themselves, on every platform.
TEST(SamplerTest, RandomNumbersAreTheSameEverywhere) {
  const std::vector<float> logits(1 << 16, 0.0f);
  Sampler sampler({.temperature = 1, .seed = 1}, {});
  SamplerScratch scratch;
  std::vector<int32_t> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(sampler.Next(logits, scratch));
  EXPECT_EQ(ids, (std::vector<int32_t>{24129, 61837, 2965, 50950}));
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLikeliest) {
  std::vector<float> logits = RandomLogits(1000, 11);
  logits[500] = logits[700] = 100;
  Sampler sampler({.temperature = 0, .top_k = 3, .top_p = 0.5f, .seed = 1}, {});
  SamplerScratch scratch;
  EXPECT_EQ(sampler.Next(logits, scratch), 500);
}

TEST(SamplerTest, RepetitionPenaltyCountsPromptAndGeneratedTokens) {
  const std::vector<float> logits = {3, 2.5f, 2.4f, -1};
  SamplerScratch scratch;
  Sampler sampler({.repetition_penalty = 1.4f, .seed = 0}, {0});
  EXPECT_EQ(sampler.Next(logits, scratch), 1);  // 0 counts 3 / 1.4
  EXPECT_EQ(sampler.Next(logits, scratch), 2);  // 1 counts 2.5 / 1.4
  EXPECT_EQ(sampler.Next(logits, scratch), 0);  // 2.14 against 1.79 and 1.71
  // A negative logit moves away from zero, too.
  const std::vector<float> negative = {-1, -1.2f};
  Sampler other({.repetition_penalty = 1.3f, .seed = 0}, {0});
  EXPECT_EQ(other.Next(negative, scratch), 1);
}

TEST(SamplerTest, PresenceAndFrequencyCountGeneratedTokensOnly) {
  SamplerScratch scratch;
  const std::vector<float> logits = {3, 2.5f};
  Sampler presence({.presence_penalty = 1, .seed = 0}, {0, 0, 0});
  EXPECT_EQ(presence.Next(logits, scratch), 0);
  EXPECT_EQ(presence.Next(logits, scratch), 1);  // 2 against 2.5
  EXPECT_EQ(presence.Next(logits, scratch), 0);  // 2 against 1.5, however often it comes
  EXPECT_EQ(presence.Next(logits, scratch), 0);
  Sampler frequency({.frequency_penalty = 0.3f, .seed = 0}, {0, 0, 0});
  EXPECT_EQ(frequency.Next(logits, scratch), 0);
  EXPECT_EQ(frequency.Next(logits, scratch), 0);  // 2.7
  EXPECT_EQ(frequency.Next(logits, scratch), 1);  // 2.4 against 2.5
}

TEST(SamplerTest, AnyRowGivesATokenInRange) {
  const std::vector<std::vector<float>> rows = {std::vector<float>(100, kNan),
                                                std::vector<float>(100, -kInfinity),
                                                std::vector<float>(100, kInfinity),
                                                {kNan, -kInfinity, kInfinity, 0, 1e38f, -1e38f},
                                                {0}};
  for (const std::vector<float>& logits : rows) {
    for (float temperature : {0.0f, 1e-45f, 1e-6f, 1.0f, 100.0f}) {
      for (SamplingParams params : {SamplingParams{},
                                    {.top_k = 3},
                                    {.top_p = 0.5f},
                                    {.min_p = 0.5f},
                                    {.top_k = 2,
                                    .top_p = 1e-30f,
                                    .min_p = 1,
                                    .repetition_penalty = 10,
                                    .presence_penalty = 100,
                                    .frequency_penalty = -100}}) {
        params.temperature = temperature;
        params.seed = 9;
        Sampler sampler(params, {0});
        SamplerScratch scratch;
        for (int i = 0; i < 10; ++i) {
          const int32_t id = sampler.Next(logits, scratch);
          ASSERT_GE(id, 0);
          ASSERT_LT(id, static_cast<int32_t>(logits.size()));
        }
      }
    }
  }
}

TEST(SamplerTest, TheLowestTemperatureIsGreedy) {
  const std::vector<float> logits = RandomLogits(3000, 13);
  Sampler cold({.temperature = 1e-45f, .seed = 3}, {}), greedy({.seed = 3}, {});
  SamplerScratch scratch;
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(cold.Next(logits, scratch), greedy.Next(logits, scratch));
  }
}

TEST(DescribeTokenTest, GivesLogSoftmaxAndTheBestAlternatives) {
  const std::vector<float> logits = RandomLogits(500, 17);
  double sum = 0;
  for (float x : logits) sum += std::exp(double{x});
  const std::vector<int32_t> sorted = ByLikelihood(logits);
  SamplerScratch scratch;
  const TokenOutput output = DescribeToken(logits, sorted[7], 20, scratch);
  EXPECT_EQ(output.id, sorted[7]);
  EXPECT_FALSE(output.is_greedy);
  EXPECT_NEAR(output.logprob, logits[sorted[7]] - std::log(sum), 1e-5);
  ASSERT_EQ(output.top.size(), 20u);
  for (size_t i = 0; i < output.top.size(); ++i) {
    EXPECT_EQ(output.top[i].id, sorted[i]);
    EXPECT_NEAR(output.top[i].logprob, logits[sorted[i]] - std::log(sum), 1e-5);
  }
  EXPECT_TRUE(DescribeToken(logits, sorted[0], 0, scratch).is_greedy);
  EXPECT_TRUE(DescribeToken(logits, sorted[0], 0, scratch).top.empty());
}

}  // namespace
}  // namespace whit
