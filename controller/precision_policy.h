// controller: decides how many bits a token's keys and values deserve. It knows rungs (kvpool/),
// not models, sequences or servers. A policy has a name (policy_spec); what it has learned of a
// model is in a policy file (policy_file, policy_lookup); what it sees of a token is in
// token_signals; price sets how much it may spend.
//
// This file: the decision itself.
#ifndef WHIT_CONTROLLER_PRECISION_POLICY_H_
#define WHIT_CONTROLLER_PRECISION_POLICY_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/policy_file.h"
#include "controller/policy_spec.h"
#include "controller/token_signals.h"
#include "kvpool/page_table.h"
#include "kvpool/rung.h"

namespace whit {

// How sequences of quantizing policies keep their newest and first tokens, unless the operator
// wants it otherwise.
inline constexpr RecentRing kDefaultRing = {
    .rung = Rung::kK8V8, .tokens = 32, .sink_rung = Rung::kFp16};

// How sequences of a policy keep them: as `quantizing` says, but at fp16 all tokens are alike, and
// `adaptive` keeps more of a long sequence, of which it then knows more: one token in 32, up to
// 256.
RecentRing RingOf(const PrecisionPolicySpec& spec, const RecentRing& quantizing = kDefaultRing);

// Tokens leave the ring by whole pages. INVALID_ARGUMENT names the bounds.
inline constexpr int kMaxRingTokens = 1 << 16;
absl::Status CheckRingTokens(int64_t tokens);

// Decides the rungs of tokens that leave the recent ring.
//
// Threads: any; a policy is immutable.
class PrecisionPolicy {
 public:
  virtual ~PrecisionPolicy() = default;

  virtual SignalNeeds needs() const { return {}; }
  // Fills rungs[i] for the i-th of the tokens, of which there are as many.
  virtual void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const = 0;
};

// `file` is the model's policy file, or null if it has none; it outlives the policy.
// FAILED_PRECONDITION names the section that the policy needs and the file lacks. `adaptive` does
// without: it then weighs tokens by what is true of models in general (generic_importance.h).
absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> MakePrecisionPolicy(
    const PrecisionPolicySpec& spec, const PolicyFile* file);

}  // namespace whit

#endif  // WHIT_CONTROLLER_PRECISION_POLICY_H_
