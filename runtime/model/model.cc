#include "runtime/model/model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/ops/elementwise.h"

namespace whit {
namespace {

// Rows that a thread claims at a time in loops over tokens.
constexpr size_t kRowGrain = 4;

// Calls fn(slice, row) for each slice with the index of its first token's row.
template <typename Fn>
void ForEachSlice(absl::Span<const ForwardSlice> slices, Fn fn) {
  size_t row = 0;
  for (const ForwardSlice& slice : slices) {
    fn(slice, row);
    row += slice.tokens.size();
  }
}

void Grow(std::vector<float>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const GgufFile& file, ThreadPool& pool) {
  absl::StatusOr<ModelConfig> config = ReadModelConfig(file);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Load(file, *config, pool);
  if (!weights.ok()) return weights.status();
  return std::unique_ptr<Model>(new Model(*std::move(config), *std::move(weights), pool));
}

Model::Model(ModelConfig config, std::unique_ptr<ModelWeights> weights, ThreadPool& pool)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      pool_(pool),
      activations_(kMaxForwardTokens,
                   std::max({config_.hidden_size, config_.ffn_size, config_.query_size()})) {}

absl::Span<const float> Model::Forward(absl::Span<const ForwardSlice> slices) {
  num_tokens_ = 0;
  for (const ForwardSlice& slice : slices) num_tokens_ += static_cast<int>(slice.tokens.size());
  Embed(slices);
  PrepareRope(slices);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    AttentionBlock(layer, slices);
    FeedForwardBlock(layer);
  }
  return ComputeLogits(slices);
}

void Model::Embed(absl::Span<const ForwardSlice> slices) {
  Grow(hidden_, size_t{1} * num_tokens_ * config_.hidden_size);
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    pool_.ParallelFor(slice.tokens.size(), kRowGrain, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        weights_->embedding.UnpackRow(slice.tokens[i],
                                      hidden_.data() + (first + i) * config_.hidden_size);
      }
    });
  });
}

void Model::PrepareRope(absl::Span<const ForwardSlice> slices) {
  const size_t dims = config_.rope_dims;
  Grow(cosines_, num_tokens_ * dims);
  Grow(sines_, num_tokens_ * dims);
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      float* cosines = cosines_.data() + (first + i) * dims;
      float* sines = sines_.data() + (first + i) * dims;
      const auto position = static_cast<float>(slice.first_position + i);
      for (size_t pair = 0; pair < dims / 2; ++pair) {
        const float angle = position * config_.rope_inverse_frequencies[pair];
        cosines[2 * pair] = cosines[2 * pair + 1] = std::cos(angle);
        sines[2 * pair + 1] = std::sin(angle);
        sines[2 * pair] = -sines[2 * pair + 1];
      }
    }
  });
}

void Model::AttentionBlock(int layer, absl::Span<const ForwardSlice> slices) {
  const LayerWeights& w = weights_->layers[layer];
  const size_t query = config_.query_size(), kv = config_.kv_size(), stride = query + 2 * kv;
  Grow(qkv_, num_tokens_ * stride);
  Grow(attended_, num_tokens_ * query);

  NormalizeInto(w.attention_norm.data(), {});
  MatMul(activations_,
         {{.weights = &w.query, .out = qkv_.data(), .stride = stride},
          {.weights = &w.key, .out = qkv_.data() + query, .stride = stride},
          {.weights = &w.value, .out = qkv_.data() + query + kv, .stride = stride}},
         pool_);
  RotateAndAppend(layer, slices);

  attention_slices_.clear();
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    attention_slices_.push_back({.q = qkv_.data() + first * stride,
                                 .q_stride = stride,
                                 .out = attended_.data() + first * query,
                                 .out_stride = query,
                                 .num_tokens = static_cast<int>(slice.tokens.size()),
                                 .first_position = slice.first_position,
                                 .kv = slice.kv});
  });
  const AttentionShape shape = {.num_heads = config_.num_heads,
                                .num_kv_heads = config_.num_kv_heads,
                                .head_dim = config_.head_dim,
                                .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
  Attention(shape, layer, attention_slices_, pool_, attention_scratch_);

  activations_.Reset(num_tokens_, query);
  activations_.SetFloats(attended_.data(), query);
  pool_.ParallelFor(num_tokens_, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      activations_.SetRow(row, attended_.data() + row * query);
    }
  });
  MatMul(activations_,
         {{.weights = &w.attention_output,
           .out = hidden_.data(),
           .stride = static_cast<size_t>(config_.hidden_size),
           .accumulate = true}},
         pool_);
}

void Model::RotateAndAppend(int layer, absl::Span<const ForwardSlice> slices) {
  const size_t query = config_.query_size(), kv = config_.kv_size(), stride = query + 2 * kv;
  const size_t dims = config_.rope_dims, head_dim = config_.head_dim;
  const size_t rotated_heads = config_.num_heads + config_.num_kv_heads;
  pool_.ParallelFor(num_tokens_, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      for (size_t head = 0; head < rotated_heads; ++head) {  // keys follow the queries
        RotatePairs(qkv_.data() + row * stride + head * head_dim, dims,
                    cosines_.data() + row * dims, sines_.data() + row * dims);
      }
    }
  });
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    pool_.ParallelFor(config_.num_kv_heads, 1, [&](size_t begin, size_t end, int) {
      for (size_t head = begin; head < end; ++head) {
        const float* keys = qkv_.data() + first * stride + query + head * head_dim;
        slice.kv->Append(layer, static_cast<int>(head), static_cast<int>(slice.tokens.size()),
                         {.keys = keys, .values = keys + kv, .stride = stride});
      }
    });
  });
}

void Model::FeedForwardBlock(int layer) {
  const LayerWeights& w = weights_->layers[layer];
  const size_t ffn = config_.ffn_size;
  Grow(gate_up_, num_tokens_ * 2 * ffn);

  NormalizeInto(w.ffn_norm.data(), {});
  MatMul(activations_,
         {{.weights = &w.gate, .out = gate_up_.data(), .stride = 2 * ffn},
          {.weights = &w.up, .out = gate_up_.data() + ffn, .stride = 2 * ffn}},
         pool_);
  activations_.Reset(num_tokens_, ffn);
  activations_.SetFloats(gate_up_.data(), 2 * ffn);
  pool_.ParallelFor(num_tokens_, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      float* gate = gate_up_.data() + row * 2 * ffn;
      SiluMultiply(gate, gate + ffn, ffn, gate);
      activations_.SetRow(row, gate);
    }
  });
  MatMul(activations_,
         {{.weights = &w.down,
           .out = hidden_.data(),
           .stride = static_cast<size_t>(config_.hidden_size),
           .accumulate = true}},
         pool_);
}

void Model::NormalizeInto(const float* weight, absl::Span<const int> rows) {
  const size_t hidden = config_.hidden_size;
  const size_t count = rows.empty() ? num_tokens_ : rows.size();
  Grow(normed_, count * hidden);
  activations_.Reset(count, hidden);
  activations_.SetFloats(normed_.data(), hidden);
  pool_.ParallelFor(count, kRowGrain, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      const size_t row = rows.empty() ? i : rows[i];
      float* normed = normed_.data() + i * hidden;
      RmsNorm(hidden_.data() + row * hidden, weight, config_.rms_norm_epsilon, hidden, normed);
      activations_.SetRow(i, normed);
    }
  });
}

absl::Span<const float> Model::ComputeLogits(absl::Span<const ForwardSlice> slices) {
  std::vector<int> rows;
  ForEachSlice(slices, [&](const ForwardSlice& slice, size_t first) {
    const size_t count = slice.tokens.size();
    if (slice.logits == ForwardSlice::Logits::kNone) return;
    size_t i = slice.logits == ForwardSlice::Logits::kLast ? count - 1 : 0;
    for (; i < count; ++i) rows.push_back(static_cast<int>(first + i));
  });
  if (rows.empty()) return {};
  const size_t vocab = config_.vocab_size;
  Grow(logits_, rows.size() * vocab);
  NormalizeInto(weights_->output_norm.data(), rows);
  MatMul(activations_, {{.weights = &weights_->output, .out = logits_.data(), .stride = vocab}},
         pool_);
  return absl::MakeConstSpan(logits_.data(), rows.size() * vocab);
}

}  // namespace whit
