// controller: decides how many bits a token's keys and values deserve. It knows rungs (kvpool/),
// not models, sequences or servers.
//
// This file: the name of a policy, as given by --kv-policy or by a request, and the decision
// itself.
#ifndef WHIT_CONTROLLER_PRECISION_POLICY_H_
#define WHIT_CONTROLLER_PRECISION_POLICY_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvpool/page_table.h"
#include "kvpool/rung.h"

namespace whit {

// What a policy name says.
struct PrecisionPolicySpec {
  enum class Kind {
    kFp16,    // "fp16": nothing is quantized
    kStatic,  // "static:K4V4": every token at one rung
    kRandom,  // "random:K2V2=1,K4V4=3": each token by itself, in these proportions; a baseline
  };
  Kind kind = Kind::kFp16;
  Rung rung = Rung::kFp16;                 // kStatic
  std::array<double, kNumRungs> mix = {};  // kRandom; not negative, not all zero

  std::string ToString() const;
  bool operator==(const PrecisionPolicySpec&) const = default;
};

// INVALID_ARGUMENT for a name that is no policy, or a rung or mix that is none; UNIMPLEMENTED for a
// policy of the design that this build does not have.
absl::StatusOr<PrecisionPolicySpec> ParsePrecisionPolicy(std::string_view name);

// How sequences of a policy keep their newest tokens.
RecentRing RingOf(const PrecisionPolicySpec& spec);

// Decides the rungs of tokens that leave the recent ring.
//
// Threads: any; a policy is immutable.
class PrecisionPolicy {
 public:
  virtual ~PrecisionPolicy() = default;

  // Tokens of one (layer, KV head) at consecutive positions.
  struct Tokens {
    int layer = 0;
    int kv_head = 0;
    int first_position = 0;
  };
  // Fills rungs[i] for the token at first_position + i.
  virtual void Decide(const Tokens& tokens, absl::Span<Rung> rungs) const = 0;
};

std::unique_ptr<const PrecisionPolicy> MakePrecisionPolicy(const PrecisionPolicySpec& spec);

}  // namespace whit

#endif  // WHIT_CONTROLLER_PRECISION_POLICY_H_
