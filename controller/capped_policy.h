// CappedPolicy: what another policy decides, but nothing above a rung.
#ifndef WHIT_CONTROLLER_CAPPED_POLICY_H_
#define WHIT_CONTROLLER_CAPPED_POLICY_H_

#include <algorithm>
#include <memory>
#include <utility>

#include "controller/precision_policy.h"

namespace whit {

// Threads: set_cap excludes everything else.
class CappedPolicy final : public PrecisionPolicy {
 public:
  explicit CappedPolicy(std::shared_ptr<const PrecisionPolicy> policy)
      : policy_(std::move(policy)) {}

  void set_cap(Rung cap) { cap_ = cap; }
  Rung cap() const { return cap_; }

  SignalNeeds needs() const override { return policy_->needs(); }
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override {
    policy_->Decide(tokens, rungs);
    for (Rung& rung : rungs) rung = std::min(rung, cap_);
  }

 private:
  const std::shared_ptr<const PrecisionPolicy> policy_;
  Rung cap_ = Rung::kFp16;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_CAPPED_POLICY_H_
