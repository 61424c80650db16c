#include "controller/adaptive_policy.h"

#include <algorithm>
#include <cmath>

#include "controller/dense_layer.h"
#include "controller/generic_importance.h"

namespace whit {
namespace {

constexpr float kLargestFeature = 6;  // in spreads, either way

// Of an importance; keeps losses finite whatever a file says.
constexpr float kLargestLog = 60;

float Importance(float log) { return std::exp(std::min(log, kLargestLog)); }

}  // namespace

AdaptivePolicy::AdaptivePolicy(const ModelIdentity& model, const ImportanceModel& importance)
    : model_(model),
      importance_(importance),
      errors_({.key = importance.key_error, .value = importance.value_error}) {
  for (const float spread : importance.spreads) inverse_spreads_.push_back(1 / spread);
}

void AdaptivePolicy::PredictImportance(const LeavingTokens& tokens, int first, int count,
                                       ImportanceFeatureBlock* block, float* log_importance) const {
  constexpr size_t kHidden = ImportanceModel::kHidden;
  const size_t pair = size_t{1} * tokens.layer * model_.num_kv_heads + tokens.kv_head;
  const size_t pairs = size_t{1} * model_.num_layers * model_.num_kv_heads;
  // The group's query heads follow those of the groups before it.
  const size_t group_elements = importance_.query_means.size() / pairs;
  ExtractImportanceFeatures(
      tokens, first, count,
      absl::MakeConstSpan(importance_.query_means).subspan(pair * group_elements, group_elements),
      block);

  float z[kTileTokens][kNumImportanceFeatures];
  const float* centers = importance_.centers.data() + pair * kNumImportanceFeatures;
  const float* inverse_spreads = inverse_spreads_.data() + pair * kNumImportanceFeatures;
  for (int i = 0; i < count; ++i) {
    for (int f = 0; f < kNumImportanceFeatures; ++f) {
      z[i][f] = std::clamp((block->features[f][i] - centers[f]) * inverse_spreads[f],
                           -kLargestFeature, kLargestFeature);
    }
  }
  float hidden1[kTileTokens * kHidden], hidden2[kTileTokens * kHidden];
  DenseRelu(z[0], count, kNumImportanceFeatures, importance_.weights1.data(),
            importance_.pair_bias1.data() + pair * kHidden, kHidden, hidden1);
  DenseRelu(hidden1, count, kHidden, importance_.weights2.data(), importance_.bias2.data(), kHidden,
            hidden2);
  DenseLinear(hidden2, count, kHidden, importance_.weights3.data(),
              importance_.pair_bias3.data() + 2 * pair, 2, log_importance);
}

void AdaptivePolicy::Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const {
  for (int first = 0; first < tokens.count; first += kTileTokens) {
    const int count = std::min(kTileTokens, tokens.count - first);
    ImportanceFeatureBlock block;
    float log_importance[kTileTokens][2];
    PredictImportance(tokens, first, count, &block, log_importance[0]);
    for (int i = 0; i < count; ++i) {
      rungs[first + i] = CheapestRung(Importance(log_importance[i][0]) * block.key_squares[i],
                                      Importance(log_importance[i][1]) * block.value_squares[i],
                                      errors_, tokens.price, tokens.head_dim);
    }
  }
}

void GenericAdaptivePolicy::Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const {
  for (int first = 0; first < tokens.count; first += kTileTokens) {
    const int count = std::min(kTileTokens, tokens.count - first);
    ImportanceFeatureBlock block;
    ExtractImportanceFeatures(tokens, first, count, {}, &block);
    float key_losses[kTileTokens], value_losses[kTileTokens];
    GenericLosses(tokens, first, count, block, key_losses, value_losses);
    for (int i = 0; i < count; ++i) {
      rungs[first + i] = CheapestRung(key_losses[i], value_losses[i], kGenericErrors, tokens.price,
                                      tokens.head_dim);
    }
  }
}

}  // namespace whit
