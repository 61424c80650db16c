// controller: decides how many bits a token's keys and values deserve. It knows rungs (kvpool/), not
// models, sequences or servers.
//
// This file: the name of a policy, as given by --kv-policy or by a request.
#ifndef WHIT_CONTROLLER_PRECISION_POLICY_H_
#define WHIT_CONTROLLER_PRECISION_POLICY_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kvpool/rung.h"

namespace whit {

// What a policy name says.
struct PrecisionPolicySpec {
  enum class Kind { kFp16 };
  Kind kind = Kind::kFp16;
  std::string ToString() const;
};

// "fp16". INVALID_ARGUMENT for a name that is no policy; UNIMPLEMENTED for a policy of the design that
// this build does not have.
absl::StatusOr<PrecisionPolicySpec> ParsePrecisionPolicy(std::string_view name);

}  // namespace whit

#endif  // WHIT_CONTROLLER_PRECISION_POLICY_H_
