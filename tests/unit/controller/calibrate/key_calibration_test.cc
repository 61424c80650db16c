#include "controller/calibrate/key_calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "controller/calibrate/key_statistics.h"
#include "kvpool/quantizer.h"
#include "runtime/model/dequantize.h"
#include "runtime/ops/elementwise.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using testing::HasSubstr;

struct Fixture {
  explicit Fixture(const GgufWriter& writer, int num_threads = 2)
      : bytes(writer.Build()),
        file(GgufFile::Parse(bytes).value()),
        threads(num_threads),
        model(Model::Load(*file, threads).value()) {}

  absl::StatusOr<KeyCalibration> Run(const std::vector<TextWindow>& windows) {
    return CalibrateKeys(*model, windows, {256},
                         [this](size_t tokens) { progress.push_back(tokens); });
  }

  const std::vector<std::byte> bytes;
  const std::unique_ptr<GgufFile> file;
  ThreadPool threads;
  const std::unique_ptr<Model> model;
  std::vector<size_t> progress;
};

std::vector<TextWindow> RandomWindows(int count, int tokens, int vocab = 300) {
  std::mt19937 rng(3);
  std::vector<TextWindow> windows(count);
  for (TextWindow& window : windows) {
    window.tokens.resize(tokens);
    for (int32_t& token : window.tokens) token = static_cast<int32_t>(rng() % vocab);
    window.held_out = &window == &windows.back();
  }
  return windows;
}

std::vector<double> ReadRow(const GgufFile& file, const std::string& name, size_t row) {
  const GgufTensor& tensor = *file.FindTensor(name);
  std::vector<float> values(tensor.cols);
  DequantizeRow(tensor.type, tensor.data + row * tensor.row_bytes(), tensor.cols, values.data());
  return {values.begin(), values.end()};
}

// The keys of the first layer before RoPE, straight from the weights: they depend on the token
// alone.
std::vector<double> FirstLayerKeys(const GgufFile& file, int32_t token) {
  std::vector<double> x = ReadRow(file, "token_embd.weight", token);
  const std::vector<double> norm = ReadRow(file, "blk.0.attn_norm.weight", 0);
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * norm[i];
  std::vector<double> keys;
  for (size_t row = 0; row < file.FindTensor("blk.0.attn_k.weight")->rows; ++row) {
    const std::vector<double> weights = ReadRow(file, "blk.0.attn_k.weight", row);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += weights[i] * x[i];
    keys.push_back(sum);
  }
  return keys;
}

TEST(CalibrateKeysTest, MeansAreThoseOfTheKeysBeforeRope) {
  Fixture fixture(
      MakeTinyModel({.matrix_type = TensorType::kF32, .embedding_type = TensorType::kF32}));
  // More than one pass through the model each.
  const std::vector<TextWindow> windows = RandomWindows(3, 700);
  const auto calibration = fixture.Run(windows);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  const int64_t counted = 2 * (700 - kUncountedTokens);
  EXPECT_EQ(calibration->learned_tokens, counted);
  EXPECT_EQ(fixture.progress, (std::vector<size_t>{512, 700, 1212, 1400, 1912, 2100}));

  const ModelConfig& config = fixture.model->config();
  ASSERT_EQ(calibration->key_means.size(), config.num_layers * config.kv_size());
  std::vector<double> sums(config.kv_size());
  for (const TextWindow& window : windows) {
    if (window.held_out) continue;
    for (size_t i = kUncountedTokens; i < window.tokens.size(); ++i) {
      const std::vector<double> keys = FirstLayerKeys(*fixture.file, window.tokens[i]);
      for (size_t j = 0; j < keys.size(); ++j) sums[j] += keys[j];
    }
  }
  for (size_t j = 0; j < sums.size(); ++j) {
    EXPECT_NEAR(calibration->key_means[j], sums[j] / static_cast<double>(counted), 1e-4) << j;
  }
}

TEST(CalibrateKeysTest, DoesNotDependOnThreads) {
  const GgufWriter writer = MakeTinyModel();
  const std::vector<TextWindow> windows = RandomWindows(3, 600);
  Fixture one(writer, 1), three(writer, 3);
  const auto a = one.Run(windows), b = three.Run(windows);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->key_means, b->key_means);  // bitwise
  EXPECT_EQ(a->key_energy_explained, b->key_energy_explained);
  EXPECT_EQ(a->layer_key_energy_explained, b->layer_key_energy_explained);
}

TEST(CalibrateKeysTest, MeansExplainKeysThatAreAlike) {
  Fixture fixture(MakeTinyModel());
  std::vector<TextWindow> windows = RandomWindows(2, 200);
  const auto random = fixture.Run(windows);
  ASSERT_TRUE(random.ok());
  // A model that sees one token only has nearly the same keys everywhere. What is left is how far
  // RoPE turns them within a block.
  for (TextWindow& window : windows) std::fill(window.tokens.begin(), window.tokens.end(), 70);
  const auto alike = fixture.Run(windows);
  ASSERT_TRUE(alike.ok());
  EXPECT_GT(alike->key_energy_explained, 0.5);
  EXPECT_GT(alike->key_energy_explained, 2 * random->key_energy_explained);
  EXPECT_EQ(alike->layer_key_energy_explained.size(), 2);
}

TEST(CalibrateKeysTest, WeightsThatAreNotFiniteAreAnError) {
  GgufWriter writer = MakeTinyModel({.matrix_type = TensorType::kF32});
  for (auto& tensor : writer.tensors) {
    if (tensor.name != "blk.1.attn_k.weight") continue;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(tensor.data.data(), &nan, sizeof(nan));
  }
  Fixture fixture(writer);
  EXPECT_THAT(fixture.Run(RandomWindows(2, 100)).status().ToString(),
              HasSubstr("INVALID_ARGUMENT: the keys of layer 1"));
}

// Pages of keys that are one mean, turned by RoPE, plus noise.
class KeyStatisticsTest : public testing::Test {
 protected:
  static constexpr int kLayers = 2, kHeads = 2, kDim = 32, kRopeDims = 16, kTokens = 300;

  KeyStatisticsTest()
      : pool_(PagePool::Create({.capacity_bytes = size_t{4} << 20, .head_dim = kDim}).value()) {
    config_.num_layers = kLayers;
    config_.num_kv_heads = kHeads;
    config_.head_dim = kDim;
    config_.rope_dims = kRopeDims;
    for (int i = 0; i < kRopeDims / 2; ++i) {
      config_.rope_inverse_frequencies.push_back(std::pow(100.0f, -i / 8.0f));
    }
    std::normal_distribution<float> normal;
    for (int i = 0; i < kLayers * kHeads * kDim; ++i) means_.push_back(2 * normal(rng_));
  }

  PageTable MakeTable(float noise) {
    PageTable kv(pool_.get(), {kLayers, kHeads}, RecentRing{}, nullptr);
    std::normal_distribution<float> normal;
    for (int position = 0; position < kTokens; ++position) {
      std::vector<float> cosines, sines;
      for (float frequency : config_.rope_inverse_frequencies) {
        const float angle = static_cast<float>(position) * frequency;
        cosines.insert(cosines.end(), {std::cos(angle), std::cos(angle)});
        sines.insert(sines.end(), {-std::sin(angle), std::sin(angle)});
      }
      for (int head = 0; head < kLayers * kHeads; ++head) {
        std::vector<float> key(means_.begin() + head * kDim, means_.begin() + (head + 1) * kDim);
        for (float& x : key) x += noise * normal(rng_);
        if (position < kUncountedTokens) key.assign(kDim, 100);  // a sink
        RotatePairs(key.data(), kRopeDims, cosines.data(), sines.data());
        RotateHadamard(key.data(), kDim);
        kv.Append(head / kHeads, head % kHeads, 1,
                  {.keys = key.data(), .values = key.data(), .stride = kDim});
      }
    }
    return kv;
  }

  std::mt19937 rng_{1};
  ThreadPool threads_{2};
  std::unique_ptr<PagePool> pool_;
  ModelConfig config_;
  std::vector<float> means_;
};

TEST_F(KeyStatisticsTest, SumsFindTheMeanThatRopeTurned) {
  KeyMeanSums sums(config_, kTokens);
  EXPECT_EQ(sums.Means(), std::vector<float>(means_.size()));
  sums.Add(MakeTable(0), threads_);
  sums.Add(MakeTable(0), threads_);
  EXPECT_EQ(sums.tokens(), 2 * (kTokens - kUncountedTokens));
  const std::vector<float> found = sums.Means();
  for (size_t i = 0; i < means_.size(); ++i) EXPECT_NEAR(found[i], means_[i], 2e-3) << i;
}

TEST_F(KeyStatisticsTest, QueryMeansAreAveragedOverPositions) {
  config_.num_heads = 2;
  constexpr int kContexts[] = {40, 200};
  QueryMeanSums sums(config_, kTokens);
  const auto turned = [&](int head, int position) {
    std::vector<float> cosines, sines;
    for (float frequency : config_.rope_inverse_frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      cosines.insert(cosines.end(), {std::cos(angle), std::cos(angle)});
      sines.insert(sines.end(), {-std::sin(angle), std::sin(angle)});
    }
    std::vector<float> query(means_.begin() + head * kDim, means_.begin() + (head + 1) * kDim);
    RotatePairs(query.data(), kRopeDims, cosines.data(), sines.data());
    return query;
  };
  // Windows shorter than the contexts, in two passes, of which the second is counted whole.
  for (int first : {0, 20}) {
    for (int layer = 0; layer < kLayers; ++layer) {
      std::vector<float> rows;
      for (int row = 0; row < 20; ++row) {
        for (int head = 0; head < kHeads; ++head) {
          std::vector<float> query = turned(layer * kHeads + head, first + row);
          if (first + row < kUncountedTokens) query.assign(kDim, 100);
          rows.insert(rows.end(), query.begin(), query.end());
        }
      }
      sums.Add({.layer = layer, .num_rows = 20, .queries = rows.data(), .stride = kHeads * kDim},
               first, threads_);
    }
  }
  const std::vector<float> found = sums.Means(kContexts);
  for (int head = 0; head < kLayers * kHeads; ++head) {
    std::vector<float> expected(kDim);
    for (int context : kContexts) {
      for (int position = 0; position < context; ++position) {
        const std::vector<float> query = turned(head, position);
        for (int i = 0; i < kDim; ++i) expected[i] += query[i] / (2.0f * context);
      }
    }
    RotateHadamard(expected.data(), kDim);
    for (int i = 0; i < kDim; ++i) EXPECT_NEAR(found[head * kDim + i], expected[i], 1e-3);
  }
}

TEST_F(KeyStatisticsTest, EnergyIsWhatTheMeansOfPagesLeaveOver) {
  KeyMeans::Shape shape = {.num_layers = kLayers,
                           .num_kv_heads = kHeads,
                           .head_dim = kDim,
                           .inverse_frequencies = config_.rope_inverse_frequencies};
  const PageTable kv = MakeTable(1);
  // Without means nothing is explained, with the true ones more than half: of a token's energy of
  // about 4 + 1 an element, the noise and part of the 16 dimensions that turn are left.
  KeyMeans none(shape, std::vector<float>(means_.size())), means(shape, means_);
  none.Prepare(kTokens);
  means.Prepare(kTokens);
  KeyEnergy without(config_, none), with(config_, means);
  EXPECT_EQ(with.Explained(), 0);  // of no tokens
  without.Add(kv, threads_);
  with.Add(kv, threads_);
  EXPECT_EQ(without.Explained(), 0);
  EXPECT_GT(with.Explained(), 0.5);
  EXPECT_LT(with.Explained(), 0.85);
  EXPECT_LE(std::min(with.Explained(0), with.Explained(1)), with.Explained());
  EXPECT_GE(std::max(with.Explained(0), with.Explained(1)), with.Explained());
}

}  // namespace
}  // namespace whit
