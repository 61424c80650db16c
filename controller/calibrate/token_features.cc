#include "controller/calibrate/token_features.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_map.h"

namespace whit {

TokenFeatureReader::TokenFeatureReader(absl::Span<const int32_t> tokens)
    : features_(tokens.size()) {
  absl::flat_hash_map<int32_t, int> counts;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto seen = counts.find(tokens[i]);
    const int count = seen == counts.end() ? 0 : seen->second;
    const auto observed = static_cast<double>(counts.size());
    features_[i].rarity =
        static_cast<float>(-std::log((count + 1) / (static_cast<double>(i) + observed + 1)));
    counts[tokens[i]] = count + 1;
  }
}

void TokenFeatureReader::Add(absl::Span<const float> logits, size_t vocab_size, ThreadPool& pool) {
  const size_t rows = std::min(logits.size() / vocab_size, features_.size() - added_);
  pool.ParallelFor(rows, 1, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      const Eigen::Map<const Eigen::ArrayXf> x(logits.data() + row * vocab_size,
                                               static_cast<Eigen::Index>(vocab_size));
      const float highest = x.maxCoeff();
      // With e = exp(x - highest): H = ln(sum e) - sum e (x - highest) / sum e.
      const Eigen::ArrayXf shifted = x - highest;
      const Eigen::ArrayXf weights = shifted.exp();
      const float sum = weights.sum();
      TokenFeatures& features = features_[added_ + row];
      features.entropy = std::log(sum) - (weights * shifted).sum() / sum;
      features.confidence = 1 / sum;
    }
  });
  added_ += rows;
}

std::vector<TokenFeatures> TokenFeatureReader::Features(
    absl::Span<const float> attention_variance) const {
  std::vector<TokenFeatures> features = features_;
  for (size_t i = 0; i < features.size(); ++i) {
    features[i].attention_variance = attention_variance[i];
  }
  return features;
}

}  // namespace whit
