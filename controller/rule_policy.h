// RulePolicy: the hand-crafted dynamic baseline. A token is worth more bits if the model was unsure
// when it read it (entropy of the next-token distribution), as uncertainty-driven schemes have it,
// or if it has received much attention, as heavy-hitter schemes (H2O, Zhang et al. 2023) have it.
//
// Attention is taken relative to an even share: 1 is what a token gets from a query that attends to
// all alike. It is what the token received in the (layer, KV head) at hand, so the rule may decide
// differently there; the entropy is the token's alone.
#ifndef WHIT_CONTROLLER_RULE_POLICY_H_
#define WHIT_CONTROLLER_RULE_POLICY_H_

#include "controller/precision_policy.h"

namespace whit {

class RulePolicy final : public PrecisionPolicy {
 public:
  explicit RulePolicy(const RuleThresholds& thresholds) : thresholds_(thresholds) {}

  SignalNeeds needs() const override { return {.attention = true, .features = true}; }
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override;

 private:
  const RuleThresholds thresholds_;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_RULE_POLICY_H_
