// LearnedPolicy: runs the network of learned_model.h.
#ifndef WHIT_CONTROLLER_LEARNED_POLICY_H_
#define WHIT_CONTROLLER_LEARNED_POLICY_H_

#include "controller/learned_model.h"
#include "controller/precision_policy.h"

namespace whit {

class LearnedPolicy final : public PrecisionPolicy {
 public:
  // `model` outlives the policy.
  explicit LearnedPolicy(const LearnedModel& model) : model_(model) {}

  SignalNeeds needs() const override { return {.features = true}; }
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override;

 private:
  const LearnedModel& model_;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_LEARNED_POLICY_H_
