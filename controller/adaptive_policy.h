// AdaptivePolicy: each token of each (layer, KV head) gets the rung at which what its error does,
// plus what its bits cost, is least.
#ifndef WHIT_CONTROLLER_ADAPTIVE_POLICY_H_
#define WHIT_CONTROLLER_ADAPTIVE_POLICY_H_

#include <vector>

#include "controller/importance.h"
#include "controller/importance_features.h"
#include "controller/policy_file.h"
#include "controller/precision_policy.h"
#include "controller/rung_choice.h"

namespace whit {

// With the importance that whit-calibrate has learned of the model.
class AdaptivePolicy final : public PrecisionPolicy {
 public:
  // `importance` fits `model` and outlives the policy.
  AdaptivePolicy(const ModelIdentity& model, const ImportanceModel& importance);

  SignalNeeds needs() const override { return {.attention = true, .vectors = true}; }
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override;

  // Logarithms of the importance of the `count` tokens from the `first` on (at most kTileTokens):
  // [token][2], of the key and of the value. `block` gets what they were predicted from.
  void PredictImportance(const LeavingTokens& tokens, int first, int count,
                         ImportanceFeatureBlock* block, float* log_importance) const;

 private:
  const ModelIdentity model_;
  const ImportanceModel& importance_;
  const RungErrors errors_;
  std::vector<float> inverse_spreads_;  // [pair][feature]
};

// With what is true of models in general (generic_importance.h).
class GenericAdaptivePolicy final : public PrecisionPolicy {
 public:
  SignalNeeds needs() const override { return {.attention = true, .vectors = true}; }
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_ADAPTIVE_POLICY_H_
