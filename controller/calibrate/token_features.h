// The features of TokenFeatures, read from a window of text as the model goes over it.
#ifndef WHIT_CONTROLLER_CALIBRATE_TOKEN_FEATURES_H_
#define WHIT_CONTROLLER_CALIBRATE_TOKEN_FEATURES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "controller/token_signals.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

class TokenFeatureReader {
 public:
  explicit TokenFeatureReader(absl::Span<const int32_t> tokens);

  // Logits of the next tokens of the window: [rows][vocab_size].
  void Add(absl::Span<const float> logits, size_t vocab_size, ThreadPool& pool);

  // By token, all of which have been added; `attention_variance` likewise.
  std::vector<TokenFeatures> Features(absl::Span<const float> attention_variance) const;

 private:
  std::vector<TokenFeatures> features_;  // [token]; attention_variance is not yet set
  size_t added_ = 0;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_TOKEN_FEATURES_H_
