#include "controller/calibrate/token_features.h"

#include <algorithm>

#include "runtime/ops/logits.h"

namespace whit {

TokenFeatureReader::TokenFeatureReader(absl::Span<const int32_t> tokens) {
  TokenFeatureLog log(/*first_position=*/0);
  log.Append(tokens);
  const absl::Span<const TokenFeatures> features = log.Find(0, static_cast<int>(tokens.size()));
  features_.assign(features.begin(), features.end());
}

void TokenFeatureReader::Add(absl::Span<const float> logits, size_t vocab_size, ThreadPool& pool) {
  const size_t rows = std::min(logits.size() / vocab_size, features_.size() - added_);
  pool.ParallelFor(rows, 1, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      const SoftmaxSummary summary = SummarizeSoftmax(logits.data() + row * vocab_size, vocab_size);
      features_[added_ + row].entropy = static_cast<float>(summary.entropy);
      features_[added_ + row].confidence = static_cast<float>(summary.largest);
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
