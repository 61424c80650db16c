#include "controller/calibrate/attention_observer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "controller/calibrate/outer_products.h"
#include "controller/token_signals.h"
#include "kvpool/quantizer.h"

namespace whit {
namespace {

using Matrix = AttentionObserver::Matrix;
using Rows = Eigen::Map<const Matrix>;
using Vector = Eigen::Map<const Eigen::VectorXf>;
using Array = Eigen::Map<Eigen::ArrayXf>;

// Queries taken at once: their probabilities over a long context should stay near the core.
constexpr int kQueryBlock = 128;
// Keys whose sums are made at once.
constexpr int kKeyBlock = 256;
// Queries older than this count nothing in the recent attention.
constexpr int kRecentQueries = 128;

std::array<float, kRecentQueries> RecentWeights() {
  std::array<float, kRecentQueries> weights;
  for (int age = 0; age < kRecentQueries; ++age) {
    weights[age] = std::pow(kRecentDecay, static_cast<float>(age));
  }
  return weights;
}

size_t RoundUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A row of something for each token, so that rows of powers of two do not meet in the same cache
// lines.
size_t TokenStride(size_t tokens) { return RoundUp(tokens, kOuterCols) + kOuterCols; }

void Resize(AttentionObserver::Sums& sums, size_t tokens) {
  for (auto* list : {&sums.attention, &sums.squares, &sums.recent, &sums.key_importance,
                     &sums.value_importance}) {
    list->assign(tokens, 0);
  }
}

void Add(const std::vector<float>& from, std::vector<float>& to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

// In place; `count` scores.
void Softmax(float* scores, int count) {
  Array row(scores, count);
  row = (row - row.maxCoeff()).exp();
  row *= 1 / row.sum();
}

}  // namespace

AttentionObserver::AttentionObserver(const Model& model)
    : config_(model.config()),
      pool_(model.thread_pool()),
      group_(config_.num_heads / config_.num_kv_heads),
      outputs_(size_t{1} * config_.num_layers * config_.num_heads),
      layer_(config_.num_kv_heads),
      heads_(config_.num_heads),
      scratch_(pool_.num_threads()) {
  const int d = config_.head_dim;
  pool_.ParallelFor(config_.num_layers, 1, [&](size_t begin, size_t end, int) {
    Matrix weights(config_.hidden_size, config_.query_size());
    for (size_t layer = begin; layer < end; ++layer) {
      for (int row = 0; row < config_.hidden_size; ++row) {
        float* w = weights.row(row).data();
        model.weights().layers[layer].attention_output.UnpackRow(row, w);
        for (int head = 0; head < config_.num_heads; ++head) RotateHadamard(w + head * d, d);
      }
      for (int head = 0; head < config_.num_heads; ++head) {
        OutputForm& output = outputs_[layer * config_.num_heads + head];
        const auto block = weights.middleCols(head * d, d);
        output.form = block.transpose() * block;
        output.mean_trace = output.form.trace() / static_cast<float>(d);
      }
    }
  });
}

void AttentionObserver::Begin(const PageTable* kv, std::vector<int> decided_at) {
  kv_ = kv;
  decided_at_ = std::move(decided_at);
  const size_t tokens = decided_at_.size();
  sums_.resize(size_t{1} * config_.num_layers * config_.num_kv_heads);
  for (Sums& sums : sums_) Resize(sums, tokens);
  attention_variance_.assign(tokens, 0);
}

void AttentionObserver::ReadLayer(int layer) {
  pool_.ParallelFor(layer_.size(), 1, [&](size_t begin, size_t end, int) {
    for (size_t head = begin; head < end; ++head) {
      KvHead& of = layer_[head];
      std::vector<float> keys;
      kv_->Read(layer, static_cast<int>(head), &keys, &of.values);
      const auto tokens = static_cast<Eigen::Index>(keys.size() / config_.head_dim);
      of.keys.setZero(config_.head_dim, static_cast<Eigen::Index>(TokenStride(tokens)));
      of.keys.leftCols(tokens) = Rows(keys.data(), tokens, config_.head_dim).transpose();
    }
  });
}

void AttentionObserver::Observe(const LayerView& view) {
  ReadLayer(view.layer);
  const auto tokens = static_cast<int>(layer_[0].values.size() / config_.head_dim);
  const int first = tokens - view.num_rows;
  pool_.ParallelFor(config_.num_heads, 1, [&](size_t begin, size_t end, int thread) {
    for (size_t head = begin; head < end; ++head) {
      Resize(heads_[head].sums, tokens);
      heads_[head].variance.assign(view.num_rows, 0);
      MakeValueForms(view.layer, static_cast<int>(head), tokens);
      for (int row = 0; row < view.num_rows; row += kQueryBlock) {
        ObserveBlock(view, static_cast<int>(head), first, row,
                     std::min(row + kQueryBlock, view.num_rows), scratch_[thread]);
      }
    }
  });

  for (int head = 0; head < config_.num_heads; ++head) {
    const HeadSums& from = heads_[head];
    Sums& to = sums_[size_t{1} * view.layer * config_.num_kv_heads + head / group_];
    Add(from.sums.attention, to.attention);
    Add(from.sums.squares, to.squares);
    Add(from.sums.recent, to.recent);
    Add(from.sums.key_importance, to.key_importance);
    Add(from.sums.value_importance, to.value_importance);
    if (view.layer != config_.num_layers - 1) continue;
    for (int row = 0; row < view.num_rows; ++row) {
      attention_variance_[first + row] +=
          from.variance[row] / static_cast<float>(config_.num_heads);
    }
  }
}

void AttentionObserver::MakeValueForms(int layer, int head, int tokens) {
  const Rows values(layer_[head / group_].values.data(), tokens, config_.head_dim);
  const Matrix& form = outputs_[size_t{1} * layer * config_.num_heads + head].form;
  heads_[head].value_forms = (values * form).cwiseProduct(values).rowwise().sum();
}

void AttentionObserver::ObserveBlock(const LayerView& view, int head, int first, int begin, int end,
                                     Scratch& scratch) {
  const int d = config_.head_dim, count = end - begin, tokens = first + end;
  const KvHead& kv_head = layer_[head / group_];
  const Rows values(kv_head.values.data(), tokens, d);
  const OutputForm& output = outputs_[size_t{1} * view.layer * config_.num_heads + head];

  scratch.queries.resize(count, d);
  scratch.outputs.resize(count, d);
  for (int i = 0; i < count; ++i) {
    const size_t row = begin + i;
    std::copy_n(view.queries + row * view.stride + head * d, d, scratch.queries.row(i).data());
    std::copy_n(view.attended + row * config_.query_size() + head * d, d,
                scratch.outputs.row(i).data());
    RotateHadamard(scratch.queries.row(i).data(), d);
    RotateHadamard(scratch.outputs.row(i).data(), d);
  }

  // Probabilities, then the weights of errors; behind the last token, zeros.
  const size_t rows = RoundUp(count, kOuterRows), cols = RoundUp(tokens, kOuterCols);
  scratch.turned_queries.setZero(d, static_cast<Eigen::Index>(rows));
  scratch.turned_queries.leftCols(count) =
      scratch.queries.transpose() / std::sqrt(static_cast<float>(d));
  scratch.weights.resize(static_cast<Eigen::Index>(rows),
                         static_cast<Eigen::Index>(TokenStride(tokens)));
  MultiplyOuter(scratch.turned_queries.data(), rows, kv_head.keys.data(), kv_head.keys.cols(), d,
                rows, cols, scratch.weights.data(), scratch.weights.cols());
  for (int i = 0; i < count; ++i) {
    float* row = scratch.weights.row(i).data();
    const int position = first + begin + i;
    Softmax(row, position + 1);
    std::fill(row + position + 1, row + cols, 0.0f);
    if (view.layer == config_.num_layers - 1) {
      const auto seen = static_cast<float>(position + 1);
      heads_[head].variance[begin + i] =
          Array(row, position + 1).square().sum() / seen - 1 / (seen * seen);
    }
    Receive(position, row, heads_[head].sums);
  }

  // Per query: what a key's sum needs as a polynomial in its value, and what a value's needs.
  scratch.output_forms.noalias() = scratch.outputs * output.form;
  scratch.right.setZero(count, static_cast<Eigen::Index>(RoundUp(d + 3, kOuterCols)));
  const float dims = static_cast<float>(d);
  for (int i = 0; i < count; ++i) {
    const size_t row = begin + i;
    const float residual =
        Vector(view.residual + row * config_.hidden_size, config_.hidden_size).squaredNorm();
    const float per_residual = residual > 0 ? 1 / residual : 0;
    const float per_key = scratch.queries.row(i).squaredNorm() / (dims * dims) * per_residual;
    scratch.right.row(i).head(d) = scratch.output_forms.row(i) * per_key;
    scratch.right(i, d) = per_key;
    scratch.right(i, d + 1) = scratch.outputs.row(i).dot(scratch.output_forms.row(i)) * per_key;
    scratch.right(i, d + 2) = per_residual * output.mean_trace;
  }

  Sums& sums = heads_[head].sums;
  for (int key = 0; key < tokens; key += kKeyBlock) {
    const int block = std::min(kKeyBlock, tokens - key);
    scratch.products.resize(kKeyBlock, scratch.right.cols());
    MultiplyOuter(scratch.weights.data() + key, scratch.weights.cols(), scratch.right.data(),
                  scratch.right.cols(), count, RoundUp(block, kOuterRows), scratch.right.cols(),
                  scratch.products.data(), scratch.products.cols());
    for (int j = 0; j < block; ++j) {
      const auto product = scratch.products.row(j);
      const float key_sum = heads_[head].value_forms(key + j) * product(d) -
                            2 * values.row(key + j).dot(product.head(d)) + product(d + 1);
      sums.key_importance[key + j] += std::max(key_sum, 0.0f);
      sums.value_importance[key + j] += product(d + 2);
    }
  }
}

void AttentionObserver::Receive(int position, float* row, Sums& sums) const {
  static const std::array<float, kRecentQueries> kRecentWeights = RecentWeights();
  const auto undecided = static_cast<int>(
      std::upper_bound(decided_at_.begin(), decided_at_.begin() + position + 1, position) -
      decided_at_.begin());
  for (int j = undecided; j <= position; ++j) {
    const float probability = row[j];
    const int age = decided_at_[j] - 1 - position;  // of this query, when the token is decided
    sums.attention[j] += probability;
    sums.squares[j] += probability * probability;
    if (age < kRecentQueries) sums.recent[j] += probability * kRecentWeights[age];
    row[j] = 0;
  }
  Array decided(row, undecided);
  decided = decided.square();
}

}  // namespace whit
