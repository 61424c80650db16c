// From what is observed of tokens to what importance is predicted from, vectorised.
#ifndef WHIT_CONTROLLER_IMPORTANCE_FEATURES_H_
#define WHIT_CONTROLLER_IMPORTANCE_FEATURES_H_

#include "absl/types/span.h"
#include "controller/importance.h"
#include "controller/token_signals.h"
#include "kvpool/rung.h"

namespace whit {

// Of up to kTileTokens tokens.
struct ImportanceFeatureBlock {
  float features[kNumImportanceFeatures][kTileTokens];  // importance.h says what they are
  float key_squares[kTileTokens];                       // |k - mean|^2
  float value_squares[kTileTokens];                     // |v|^2
};

// Of the `count` tokens from the `first` on. `query_means` are [query head of the group][head_dim];
// without any, the expected attention is 0. head_dim is a multiple of 16.
void ExtractImportanceFeatures(const LeavingTokens& tokens, int first, int count,
                               absl::Span<const float> query_means, ImportanceFeatureBlock* block);

}  // namespace whit

#endif  // WHIT_CONTROLLER_IMPORTANCE_FEATURES_H_
