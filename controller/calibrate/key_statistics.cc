#include "controller/calibrate/key_statistics.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kvpool/quantizer.h"

namespace whit {
namespace {

// What does not fit, NaN included, lies in a page as the largest number.
bool FitsInHalf(float x) { return std::abs(x) < 65504.0f; }

}  // namespace

RopeTable::RopeTable(const ModelConfig& config, int max_tokens)
    : head_dim_(config.head_dim), rope_dims_(config.rope_dims) {
  const size_t pairs = rope_dims_ / 2;
  cosines_.reserve(max_tokens * pairs);
  sines_.reserve(max_tokens * pairs);
  for (int position = 0; position < max_tokens; ++position) {
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = position * double{config.rope_inverse_frequencies[i]};
      cosines_.push_back(static_cast<float>(std::cos(angle)));
      sines_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

void RopeTable::AddTurnedBack(const float* x, int position, double* sums) const {
  const float* cosines = cosines_.data() + size_t{1} * position * (rope_dims_ / 2);
  const float* sines = sines_.data() + size_t{1} * position * (rope_dims_ / 2);
  for (int i = 0; i < rope_dims_ / 2; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    sums[2 * i] += a * cosines[i] + b * sines[i];
    sums[2 * i + 1] += b * cosines[i] - a * sines[i];
  }
  for (int i = rope_dims_; i < head_dim_; ++i) sums[i] += x[i];
}

KeyMeanSums::KeyMeanSums(const ModelConfig& config, int max_tokens)
    : num_kv_heads_(config.num_kv_heads),
      num_heads_(config.num_layers * config.num_kv_heads),
      head_dim_(config.head_dim),
      rope_(config, max_tokens),
      sums_(size_t{1} * num_heads_ * head_dim_),
      out_of_range_(num_heads_) {}

void KeyMeanSums::Add(const PageTable& kv, ThreadPool& pool) {
  pool.ParallelFor(num_heads_, 1, [&](size_t begin, size_t end, int) {
    for (size_t head = begin; head < end; ++head) AddHead(static_cast<int>(head), kv);
  });
  tokens_ += std::max(0, kv.num_tokens() - kUncountedTokens);
}

void KeyMeanSums::AddHead(int head, const PageTable& kv) {
  std::vector<float> keys, values;
  kv.Read(head / num_kv_heads_, head % num_kv_heads_, &keys, &values);
  double* sums = sums_.data() + size_t{1} * head * head_dim_;
  for (int position = kUncountedTokens; position < kv.num_tokens(); ++position) {
    float* key = keys.data() + size_t{1} * position * head_dim_;
    if (!std::all_of(key, key + head_dim_, FitsInHalf)) out_of_range_[head] = 1;
    RotateHadamard(key, head_dim_);
    rope_.AddTurnedBack(key, position, sums);
  }
}

absl::Status KeyMeanSums::status() const {
  const auto it = std::find(out_of_range_.begin(), out_of_range_.end(), 1);
  if (it == out_of_range_.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the keys of layer ", (it - out_of_range_.begin()) / num_kv_heads_,
                   " are no numbers below 65504: the model's weights are damaged or out of range"));
}

std::vector<float> KeyMeanSums::Means() const {
  std::vector<float> means(sums_.size());
  for (size_t i = 0; i < means.size() && tokens_ > 0; ++i) {
    means[i] = static_cast<float>(sums_[i] / static_cast<double>(tokens_));
  }
  return means;
}

QueryMeanSums::QueryMeanSums(const ModelConfig& config, int max_tokens)
    : config_(config),
      rope_(config, max_tokens),
      sums_(size_t{1} * config.num_layers * config.query_size()) {}

void QueryMeanSums::Add(const LayerView& view, int first_position, ThreadPool& pool) {
  const int counted_from = std::max(0, kUncountedTokens - first_position);
  if (view.layer == 0) tokens_ += std::max(0, view.num_rows - counted_from);
  pool.ParallelFor(config_.num_heads, 1, [&](size_t begin, size_t end, int) {
    for (size_t head = begin; head < end; ++head) {
      const size_t offset = head * config_.head_dim;
      double* sums = sums_.data() + size_t{1} * view.layer * config_.query_size() + offset;
      for (int row = counted_from; row < view.num_rows; ++row) {
        rope_.AddTurnedBack(view.queries + row * view.stride + offset, first_position + row, sums);
      }
    }
  });
}

std::vector<float> QueryMeanSums::Means(absl::Span<const int> contexts) const {
  std::vector<float> means(sums_.size());
  if (tokens_ == 0) return means;
  for (size_t i = 0; i < means.size(); ++i) {
    means[i] = static_cast<float>(sums_[i] / static_cast<double>(tokens_));
  }
  for (int pair = 0; pair < config_.rope_dims / 2; ++pair) {
    double cosine = 0, sine = 0;  // means over positions
    for (int context : contexts) {
      const double weight = 1.0 / context / static_cast<double>(contexts.size());
      for (int position = 0; position < context; ++position) {
        const double angle = position * double{config_.rope_inverse_frequencies[pair]};
        cosine += weight * std::cos(angle);
        sine += weight * std::sin(angle);
      }
    }
    for (size_t head = 0; head < means.size(); head += config_.head_dim) {
      const double a = means[head + 2 * pair], b = means[head + 2 * pair + 1];
      means[head + 2 * pair] = static_cast<float>(a * cosine - b * sine);
      means[head + 2 * pair + 1] = static_cast<float>(a * sine + b * cosine);
    }
  }
  for (size_t head = 0; head < means.size(); head += config_.head_dim) {
    RotateHadamard(means.data() + head, config_.head_dim);
  }
  return means;
}

KeyEnergy::KeyEnergy(const ModelConfig& config, const KeyMeans& means)
    : means_(means),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      heads_(size_t{1} * config.num_layers * config.num_kv_heads) {}

void KeyEnergy::Add(const PageTable& kv, ThreadPool& pool) {
  pool.ParallelFor(heads_.size(), 1, [&](size_t begin, size_t end, int) {
    std::vector<float> keys, values;
    for (size_t index = begin; index < end; ++index) {
      const int layer = static_cast<int>(index) / num_kv_heads_;
      const int head = static_cast<int>(index) % num_kv_heads_;
      kv.Read(layer, head, &keys, &values);
      for (int position = kUncountedTokens; position < kv.num_tokens(); ++position) {
        const float* key = keys.data() + size_t{1} * position * head_dim_;
        const float* mean = means_.mean(KeyMeans::Block(position), layer, head);
        for (int i = 0; i < head_dim_; ++i) {
          const double x = key[i], rest = x - mean[i];
          heads_[index].energy += x * x;
          heads_[index].residual += rest * rest;
        }
      }
    }
  });
}

double KeyEnergy::Explained(const Sums& sums) {
  return sums.energy > 0 ? 1 - sums.residual / sums.energy : 0;
}

double KeyEnergy::Explained(int layer) const {
  Sums sums;
  for (int head = 0; head < num_kv_heads_; ++head) {
    const Sums& of_head = heads_[size_t{1} * layer * num_kv_heads_ + head];
    sums.energy += of_head.energy;
    sums.residual += of_head.residual;
  }
  return Explained(sums);
}

double KeyEnergy::Explained() const {
  Sums sums;
  for (const Sums& of_head : heads_) {
    sums.energy += of_head.energy;
    sums.residual += of_head.residual;
  }
  return Explained(sums);
}

}  // namespace whit
