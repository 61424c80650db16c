#include "controller/calibrate/attention_observer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kvpool/quantizer.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using Rows = std::vector<std::vector<double>>;

// Everything of one layer that the reference needs, not rotated, by token.
struct SeenLayer {
  Rows queries, keys, values, outputs;
  std::vector<double> residual_squares;
};

class AttentionObserverTest : public testing::Test {
 protected:
  static constexpr int kTokens = 300;

  AttentionObserverTest()
      : bytes_(MakeTinyModel({.matrix_type = TensorType::kF32}).Build()),
        file_(GgufFile::Parse(bytes_).value()),
        model_(Model::Load(*file_, threads_).value()),
        config_(model_->config()),
        pool_(PagePool::Create({.capacity_bytes = size_t{16} << 20, .head_dim = config_.head_dim})
                  .value()),
        seen_(config_.num_layers) {
    std::mt19937 rng(1);
    for (int i = 0; i < kTokens; ++i) tokens_.push_back(static_cast<int32_t>(rng() % 300));
  }

  // Each token is decided after `queries` of them, in blocks of 16.
  static std::vector<int> DecidedAt(int queries) {
    std::vector<int> decided_at;
    for (int j = 0; j < kTokens; ++j) decided_at.push_back(j / 16 * 16 + 16 + queries);
    return decided_at;
  }

  void Run(AttentionObserver& observer, std::vector<int> decided_at) {
    PageTable kv = model_->NewPageTable(*pool_, RecentRing{});
    observer.Begin(&kv, std::move(decided_at));
    model_->SetLayerProbe([&](const LayerView& view) {
      observer.Observe(view);
      Remember(view);
    });
    for (int first = 0; first < kTokens; first += kPass) {
      const int count = std::min(kPass, kTokens - first);
      model_->Forward({{.tokens = absl::MakeConstSpan(tokens_).subspan(first, count),
                        .first_position = first,
                        .kv = &kv,
                        .logits = ForwardSlice::Logits::kNone}});
    }
    model_->SetLayerProbe(nullptr);
  }

  std::vector<double> Row(const float* from, int size) { return {from, from + size}; }
  std::vector<double> Unrotated(const float* from) {
    std::vector<float> heads(from, from + config_.kv_size());
    for (int head = 0; head < config_.num_kv_heads; ++head) {
      RotateHadamard(heads.data() + head * config_.head_dim, config_.head_dim);
    }
    return {heads.begin(), heads.end()};
  }
  void Remember(const LayerView& view) {
    SeenLayer& layer = seen_[view.layer];
    for (int row = 0; row < view.num_rows; ++row) {
      layer.queries.push_back(Row(view.queries + row * view.stride, config_.query_size()));
      layer.keys.push_back(Unrotated(view.keys + row * view.stride));
      layer.values.push_back(Unrotated(view.values + row * view.stride));
      layer.outputs.push_back(
          Row(view.attended + size_t{1} * row * config_.query_size(), config_.query_size()));
      double squares = 0;
      for (double x :
           Row(view.residual + size_t{1} * row * config_.hidden_size, config_.hidden_size)) {
        squares += x * x;
      }
      layer.residual_squares.push_back(squares);
    }
  }

  // Probabilities of the query at `position` and query head over the tokens up to it.
  std::vector<double> Attention(const SeenLayer& layer, int position, int head) const {
    const int d = config_.head_dim, kv = head / (config_.num_heads / config_.num_kv_heads);
    std::vector<double> row;
    double total = 0;
    for (int j = 0; j <= position; ++j) {
      double score = 0;
      for (int i = 0; i < d; ++i) {
        score += layer.queries[position][head * d + i] * layer.keys[j][kv * d + i];
      }
      row.push_back(std::exp(score / std::sqrt(d)));
      total += row.back();
    }
    for (double& p : row) p /= total;
    return row;
  }

  // |W_O x|^2 for x in the place of a query head's output.
  double OutputSquares(int layer, int head, const std::vector<double>& x) const {
    double squares = 0;
    std::vector<float> weights(config_.query_size());
    for (int row = 0; row < config_.hidden_size; ++row) {
      model_->weights().layers[layer].attention_output.UnpackRow(row, weights.data());
      double sum = 0;
      for (size_t i = 0; i < x.size(); ++i) sum += weights[head * x.size() + i] * x[i];
      squares += sum * sum;
    }
    return squares;
  }

  static constexpr int kPass = 190;
  const std::vector<std::byte> bytes_;
  const std::unique_ptr<GgufFile> file_;
  ThreadPool threads_{2};
  const std::unique_ptr<Model> model_;
  const ModelConfig& config_;
  const std::unique_ptr<PagePool> pool_;
  std::vector<int32_t> tokens_;
  std::vector<SeenLayer> seen_;
};

TEST_F(AttentionObserverTest, SumsAreThoseOfTheDefinition) {
  const std::vector<int> decided_at = DecidedAt(40);
  AttentionObserver observer(*model_);
  Run(observer, DecidedAt(3));  // a window before it leaves nothing behind
  for (SeenLayer& layer : seen_) layer = {};
  Run(observer, decided_at);

  const int d = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    for (int kv = 0; kv < config_.num_kv_heads; ++kv) {
      for (int j : {0, 5, 100, 189, 190, 230, kTokens - 1}) {
        double attention = 0, squares = 0, recent = 0, key = 0, value = 0;
        for (int head = kv * group; head < (kv + 1) * group; ++head) {
          double trace = 0;
          for (int i = 0; i < d; ++i) {
            std::vector<double> unit(d);
            unit[i] = 1;
            trace += OutputSquares(layer, head, unit);
          }
          for (int position = j; position < kTokens; ++position) {
            const double a = Attention(seen_[layer], position, head)[j];
            if (position < decided_at[j]) {
              attention += a;
              squares += a * a;
              recent += a * std::pow(0.875, decided_at[j] - 1 - position);
              continue;
            }
            double query_squares = 0;
            std::vector<double> offset(d);
            for (int i = 0; i < d; ++i) {
              const double q = seen_[layer].queries[position][head * d + i];
              query_squares += q * q;
              offset[i] =
                  seen_[layer].values[j][kv * d + i] - seen_[layer].outputs[position][head * d + i];
            }
            const double residual = seen_[layer].residual_squares[position];
            key += a * a * OutputSquares(layer, head, offset) * query_squares / (d * d * residual);
            value += a * a * trace / d / residual;
          }
        }
        const AttentionObserver::Sums& sums = observer.sums(layer, kv);
        const auto expect_near = [&](float found, double expected, const char* what) {
          EXPECT_NEAR(found, expected, 2e-3 * expected + 1e-9)
              << what << " of token " << j << " in layer " << layer << ", head " << kv;
        };
        expect_near(sums.attention[j], attention, "attention");
        expect_near(sums.squares[j], squares, "squares");
        expect_near(sums.recent[j], recent, "recent attention");
        expect_near(sums.key_importance[j], key, "key importance");
        expect_near(sums.value_importance[j], value, "value importance");
      }
    }
  }
  for (int position : {0, 3, 189, 250}) {
    double variance = 0;
    for (int head = 0; head < config_.num_heads; ++head) {
      const std::vector<double> row = Attention(seen_.back(), position, head);
      const double mean = 1.0 / static_cast<double>(row.size());
      for (double p : row) variance += (p - mean) * (p - mean) * mean / config_.num_heads;
    }
    EXPECT_NEAR(observer.attention_variance()[position], variance, 1e-3 * variance + 1e-9);
  }
}

TEST_F(AttentionObserverTest, SumsDoNotDependOnThreads) {
  AttentionObserver two(*model_);
  Run(two, DecidedAt(40));
  ThreadPool one_thread(1);
  const std::unique_ptr<Model> model = Model::Load(*file_, one_thread).value();
  AttentionObserver one(*model);
  PageTable kv = model->NewPageTable(*pool_, RecentRing{});
  one.Begin(&kv, DecidedAt(40));
  model->SetLayerProbe([&](const LayerView& view) { one.Observe(view); });
  for (int first = 0; first < kTokens; first += kPass) {
    model->Forward({{.tokens = absl::MakeConstSpan(tokens_).subspan(first, kPass),
                     .first_position = first,
                     .kv = &kv,
                     .logits = ForwardSlice::Logits::kNone}});
  }
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    for (int head = 0; head < config_.num_kv_heads; ++head) {
      EXPECT_EQ(one.sums(layer, head).key_importance, two.sums(layer, head).key_importance);
      EXPECT_EQ(one.sums(layer, head).attention, two.sums(layer, head).attention);
    }
  }
}

}  // namespace
}  // namespace whit
