#include "controller/calibrate/importance_samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "controller/calibrate/key_statistics.h"
#include "kvpool/quantizer.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

struct Fixture {
  explicit Fixture(int num_threads)
      : bytes(MakeTinyModel().Build()),
        file(GgufFile::Parse(bytes).value()),
        threads(num_threads),
        model(Model::Load(*file, threads).value()) {
    const ModelConfig& config = model->config();
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> key_means(size_t{1} * config.num_layers * config.kv_size());
    for (float& x : key_means) x = 0.1f * normal(rng);
    query_means.resize(size_t{1} * config.num_layers * config.query_size());
    for (float& x : query_means) x = normal(rng);
    means = std::make_unique<KeyMeans>(
        KeyMeans::Shape{.num_layers = config.num_layers,
                        .num_kv_heads = config.num_kv_heads,
                        .head_dim = config.head_dim,
                        .inverse_frequencies = config.rope_inverse_frequencies},
        key_means);
    means->Prepare(600);
    for (auto [context, count] : {std::pair(600, 2), std::pair(256, 3)}) {
      for (int i = 0; i < count; ++i) {
        TextWindow window = {.text = 0, .context = context, .tokens = {}, .held_out = i == 1};
        for (int j = 0; j < context; ++j) window.tokens.push_back(static_cast<int32_t>(rng() % 99));
        windows.push_back(window);
      }
    }
  }

  CollectedSamples Collect(size_t max_samples = 4'000'000) {
    auto samples = CollectSamples(*model, *means, query_means, windows,
                                  {.seed = 5, .max_samples = max_samples}, [&](size_t done) {
                                    EXPECT_GT(done, progress);
                                    progress = done;
                                  });
    EXPECT_TRUE(samples.ok()) << samples.status();
    EXPECT_EQ(progress, 2 * 600 + 3 * 256);
    progress = 0;
    return *std::move(samples);
  }

  const std::vector<std::byte> bytes;
  const std::unique_ptr<GgufFile> file;
  ThreadPool threads;
  const std::unique_ptr<Model> model;
  std::unique_ptr<KeyMeans> means;
  std::vector<float> query_means;
  std::vector<TextWindow> windows;
  size_t progress = 0;
};

float At(const ImportanceSample& sample, ImportanceFeature feature) {
  return sample.features[static_cast<size_t>(feature)];
}

TEST(CollectSamplesTest, SamplesAreOfEveryPairAndContext) {
  Fixture fixture(2);
  const CollectedSamples samples = fixture.Collect();
  ASSERT_EQ(samples.contexts.size(), 2);
  EXPECT_EQ(samples.contexts[0].context, 600);
  EXPECT_EQ(samples.contexts[1].context, 256);
  constexpr size_t kPairs = 4;
  for (const SamplesOfContext& context : samples.contexts) {
    EXPECT_EQ(context.tokens.size() * kPairs, context.learned.size() + context.held_out.size());
    std::vector<int> of_pair(kPairs);
    for (const ImportanceSample& sample : context.learned) {
      ++of_pair[sample.pair];
      for (float feature : sample.features) EXPECT_TRUE(std::isfinite(feature));
      // A token that was decided has been seen by its page's rest and a ring, and maybe a block.
      const float queries = std::exp(At(sample, ImportanceFeature::kQueries));
      EXPECT_GE(queries, 32.99);
      EXPECT_LE(queries, 256 + 16 + 128);
      const float position = std::exp(At(sample, ImportanceFeature::kPosition)) - 1;
      EXPECT_GE(position, kUncountedTokens - 0.01);
      EXPECT_LE(position + queries, context.context - 31.9);
      EXPECT_GE(sample.importance[0], 0);
      EXPECT_GT(sample.importance[1], 0);
    }
    EXPECT_EQ(of_pair, std::vector<int>(kPairs, of_pair[0]));
  }
  // Near those of Gaussian data; the scale that keeps the energy costs a little more.
  EXPECT_NEAR(samples.key_error[0], 0.12, 0.04);
  EXPECT_NEAR(samples.value_error[0], 0.12, 0.04);
  EXPECT_NEAR(samples.key_error[1], 0.009, 0.004);
  EXPECT_LT(samples.value_error[2], 1e-4);
}

TEST(CollectSamplesTest, VectorsAreAsThePagesHaveThem) {
  Fixture fixture(2);
  fixture.windows.resize(1);
  const ModelConfig& config = fixture.model->config();
  std::vector<std::vector<float>> keys, values;  // [layer 1's token][KV head][head_dim]
  // What the layer makes of the same tokens.
  auto pool = PagePool::Create({.capacity_bytes = size_t{16} << 20, .head_dim = config.head_dim});
  PageTable kv = fixture.model->NewPageTable(**pool, RecentRing{});
  for (int first = 0; first < 600; first += 256) {
    fixture.model->Forward(
        {{.tokens = absl::MakeConstSpan(fixture.windows[0].tokens).subspan(first, 256),
          .first_position = first,
          .kv = &kv,
          .logits = ForwardSlice::Logits::kNone}});
  }
  const auto samples = CollectSamples(*fixture.model, *fixture.means, fixture.query_means,
                                      fixture.windows, {}, [](size_t) {});
  ASSERT_TRUE(samples.ok());
  const int d = config.head_dim, group = config.num_heads / config.num_kv_heads;
  for (const ImportanceSample& sample : samples->contexts[0].learned) {
    const int layer = sample.pair / config.num_kv_heads, head = sample.pair % config.num_kv_heads;
    const auto j =
        static_cast<int>(std::lround(std::exp(At(sample, ImportanceFeature::kPosition)) - 1));
    if (j % 37 != 0) continue;
    std::vector<float> key, value;
    kv.Read(layer, head, &key, &value);
    const float* mean = fixture.means->mean(KeyMeans::Block(j), layer, head);
    double key_squares = 0, value_squares = 0, expected = 0;
    for (int i = 0; i < d; ++i) {
      key_squares += std::pow(key[j * d + i] - mean[i], 2);
      value_squares += std::pow(value[j * d + i], 2);
    }
    for (int g = 0; g < group; ++g) {
      double score = 0;
      for (int i = 0; i < d; ++i) {
        score += key[j * d + i] *
                 fixture.query_means[layer * config.query_size() + (head * group + g) * d + i];
      }
      expected += std::exp(score / std::sqrt(d));
    }
    EXPECT_NEAR(At(sample, ImportanceFeature::kKeyNorm), std::log(key_squares) / 2, 1e-3);
    EXPECT_NEAR(At(sample, ImportanceFeature::kValueNorm), std::log(value_squares) / 2, 1e-3);
    EXPECT_NEAR(At(sample, ImportanceFeature::kExpectedAttention), std::log(expected), 1e-3);
    EXPECT_NEAR(sample.energy()[0], key_squares, 1e-3 * key_squares);
  }
}

TEST(CollectSamplesTest, DoesNotDependOnThreadsAndKeepsWithinTheMemory) {
  Fixture one(1), three(3);
  constexpr size_t kMost = 800;
  const CollectedSamples a = one.Collect(kMost), b = three.Collect(kMost);
  EXPECT_EQ(a.key_error, b.key_error);
  size_t samples = 0;
  for (size_t c = 0; c < a.contexts.size(); ++c) {
    ASSERT_EQ(a.contexts[c].learned.size(), b.contexts[c].learned.size());
    for (size_t i = 0; i < a.contexts[c].learned.size(); ++i) {
      EXPECT_EQ(a.contexts[c].learned[i].features, b.contexts[c].learned[i].features);
      EXPECT_EQ(a.contexts[c].learned[i].importance, b.contexts[c].learned[i].importance);
    }
    samples += a.contexts[c].learned.size() + a.contexts[c].held_out.size();
  }
  EXPECT_LE(samples, kMost);
  EXPECT_GT(samples, kMost / 2);
}

}  // namespace
}  // namespace whit
