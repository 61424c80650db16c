#include "controller/learned_policy.h"

#include <algorithm>

#include "controller/dense_layer.h"

namespace whit {

void LearnedPolicy::Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const {
  constexpr int kFeatures = LearnedModel::kFeatures, kHidden = LearnedModel::kHidden,
                kClasses = LearnedModel::kClasses;
  for (int first = 0; first < tokens.count; first += kTileTokens) {
    const int count = std::min(kTileTokens, tokens.count - first);
    float z[kTileTokens][kFeatures];
    for (int i = 0; i < count; ++i) {
      const TokenFeatures& token = tokens.features[first + i];
      const float features[kFeatures] = {token.entropy, token.rarity, token.attention_variance,
                                         token.confidence};
      for (int f = 0; f < kFeatures; ++f) {
        z[i][f] = (features[f] - model_.centers[f]) / model_.spreads[f];
      }
    }
    float hidden1[kTileTokens * kHidden], hidden2[kTileTokens * kHidden];
    float scores[kTileTokens][kClasses];
    DenseRelu(z[0], count, kFeatures, model_.weights1.data(), model_.bias1.data(), kHidden,
              hidden1);
    DenseRelu(hidden1, count, kHidden, model_.weights2.data(), model_.bias2.data(), kHidden,
              hidden2);
    DenseLinear(hidden2, count, kHidden, model_.weights3.data(), model_.bias3.data(), kClasses,
                scores[0]);
    for (int i = 0; i < count; ++i) {
      const auto best = std::max_element(scores[i], scores[i] + kClasses) - scores[i];
      rungs[first + i] = kLearnedRungs[best];
    }
  }
}

}  // namespace whit
