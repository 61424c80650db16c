// Static allocation: one rung for each (layer, KV head), whatever the token.
#ifndef WHIT_CONTROLLER_STATIC_ALLOCATION_H_
#define WHIT_CONTROLLER_STATIC_ALLOCATION_H_

#include <vector>

#include "absl/types/span.h"
#include "controller/policy_file.h"
#include "controller/precision_policy.h"
#include "controller/rung_choice.h"

namespace whit {

// A rung below FP16 for each pair of `sensitivities` (PolicyFile), so that the sum of
// sensitivity * error is small and the mean of the
// packed bits is at most `bits`; the lowest rung for all where even that takes more. Greedy along
// each pair's convex hull: the optimum but for what one more step would have taken.
std::vector<Rung> AllocateRungs(absl::Span<const float> sensitivities, const RungErrors& errors,
                                int head_dim, double bits);

class StaticAllocatedPolicy final : public PrecisionPolicy {
 public:
  // `file` has sensitivities.
  StaticAllocatedPolicy(const PolicyFile& file, double packed_bits);

  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override;

 private:
  const int num_kv_heads_;
  const std::vector<Rung> rungs_;  // [layer][KV head]
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_STATIC_ALLOCATION_H_
