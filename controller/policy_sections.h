// What the sections of a policy file contain; policy_file.h describes them and what holds them.
#ifndef WHIT_CONTROLLER_POLICY_SECTIONS_H_
#define WHIT_CONTROLLER_POLICY_SECTIONS_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "controller/policy_file.h"

namespace whit {

// Name and content of each section that `file` needs, in a fixed order.
std::vector<std::pair<std::string, std::string>> WritePolicySections(const PolicyFile& file);

// Reads one section into `file`, whose model is set; does nothing if it does not know the name.
// Untrusted input: INVALID_ARGUMENT names the section and what is wrong with it.
absl::Status ReadPolicySection(std::string_view name, std::string_view content, PolicyFile& file);

}  // namespace whit

#endif  // WHIT_CONTROLLER_POLICY_SECTIONS_H_
