// PrecisionPolicySpec: the name of a policy, as given by --kv-policy or by a request.
#ifndef WHIT_CONTROLLER_POLICY_SPEC_H_
#define WHIT_CONTROLLER_POLICY_SPEC_H_

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvpool/rung.h"

namespace whit {

// Packed bits per element (codes and scales) that policies may be told to spend. At head_dim 64,
// K2V2 takes 2.25 and K8V8 8.25.
inline constexpr double kMinPackedBits = 2.25, kMaxPackedBits = 8.25;
// What `adaptive` spends where neither it nor the server was given a target.
inline constexpr double kDefaultPackedBits = 3.5;

// Where `rule` draws its lines: a token below both lows gets K2V2, one that reaches a high K8V8,
// any other K4V4 (rule_policy.h).
struct RuleThresholds {
  double entropy_low = 1.5, entropy_high = 3.5;    // of the next-token distribution, in nats
  double attention_low = 1, attention_high = 4.0;  // received, as a multiple of an even share
  bool operator==(const RuleThresholds&) const = default;
};

// What a policy name says.
struct PrecisionPolicySpec {
  enum class Kind {
    kFp16,             // "fp16": nothing is quantized
    kStatic,           // "static:K4V4": every token at one rung
    kRandom,           // "random:K2V2=1,K4V4=3": each token by itself, in these proportions
    kStaticAllocated,  // "static-allocated:3.0": a rung for each layer and KV head
    kRule,             // "rule", "rule:entropy=1.5:3.5,attention=1:4": fixed thresholds
    kLearned,          // "learned": the network of learned_model.h
    kAdaptive,         // "adaptive", "adaptive:3.0": by importance and price
  };
  Kind kind = Kind::kFp16;
  Rung rung = Rung::kFp16;                 // kStatic
  std::array<double, kNumRungs> mix = {};  // kRandom; not negative, not all zero
  // kStaticAllocated; kAdaptive, where 0 leaves the target to the server.
  double packed_bits = 0;
  RuleThresholds rule = {};  // kRule

  std::string ToString() const;
  bool operator==(const PrecisionPolicySpec&) const = default;
};

// INVALID_ARGUMENT for a name that is no policy, or a rung, mix, number of bits or threshold that
// is none.
absl::StatusOr<PrecisionPolicySpec> ParsePrecisionPolicy(std::string_view name);

// The rungs that the policy may give to the tokens of one (layer, KV head), lowest first.
std::vector<Rung> PossibleRungs(const PrecisionPolicySpec& spec);

}  // namespace whit

#endif  // WHIT_CONTROLLER_POLICY_SPEC_H_
