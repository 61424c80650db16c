// Where the policy file of a model is found.
#ifndef WHIT_CONTROLLER_POLICY_LOOKUP_H_
#define WHIT_CONTROLLER_POLICY_LOOKUP_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/policy_file.h"

namespace whit {

// "models/m.Q4_1.gguf" -> "models/m.Q4_1.whitpolicy"
std::string PolicyPathBeside(const std::string& model_path);

// The directory of files that come with Whit: share/whit/policies beside the folder of the running
// executable, in an installation as in a build tree.
std::string ShippedPolicyDirectory();

// As a path: none is wanted, even if there is one. A file of this name is "./off".
inline constexpr char kNoPolicyFile[] = "off";

struct PolicyLookup {
  std::string path;        // this file and no other; empty: look for one, in this order:
  std::string model_path;  // the file beside the model (PolicyPathBeside);
  std::string directory;   // the first one here that has the model's fingerprint, whatever its name
};

struct FoundPolicy {
  std::string path;
  PolicyFile file;
};

// nullopt if none is wanted, or nothing was asked for and nothing is there. A file that was asked
// for or found, but cannot be used, is an error (LoadPolicyFile): to serve without it would only
// look right.
absl::StatusOr<std::optional<FoundPolicy>> FindPolicy(const PolicyLookup& lookup,
                                                      const ModelIdentity& model);

}  // namespace whit

#endif  // WHIT_CONTROLLER_POLICY_LOOKUP_H_
