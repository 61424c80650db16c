// whit-eval: what a KV precision costs in quality, measured on real text and tasks through the
// decode path. Several arms (ways of keeping keys and values) run side by side over the same tokens
// in one process, the first of them the FP16 reference.
//
// Here: kld, tasks, needle and perplexity are the modes; arm_runner runs their sequences;
// statistics, report and svg_plot say what came out, and `report`, a script, puts it together. What
// is measured is the libraries' own code: nothing of the cache or the model is simulated here.
//
// This file: one arm, and its name on the command line.
#ifndef WHIT_TESTS_EVAL_ARMS_H_
#define WHIT_TESTS_EVAL_ARMS_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/precision_policy.h"
#include "controller/rung_choice.h"
#include "kvpool/page_table.h"
#include "runtime/ops/matmul.h"

namespace whit::eval {

// What the oracle is given beside its knowledge (oracle.h).
struct OracleBudget {
  double packed_bits = 0;
  RungErrors errors = {};
};

// A value: copies share the policy.
struct Arm {
  std::string name;
  PrecisionPolicySpec spec = {};
  RecentRing ring = {};
  std::shared_ptr<const PrecisionPolicy> policy = {};
  std::vector<PolicyFile::PricePoint> prices = {};  // where the policy asks for a price
  // FP16 pages are rounded to what naive quantization leaves of them (naive_rounding.h), and
  // counted as if they were at this rung.
  std::optional<Rung> naive_rung = {};
  // Each sequence has a policy of its own, which knows what is to come.
  std::optional<OracleBudget> oracle = {};
  ActivationFormat activations = ActivationFormat::kInt16;
};

// The arm that all others are compared with: FP16 keys and values.
Arm ReferenceArm();
bool IsReference(const Arm& arm);

// What to change of the rings that the policies come with.
struct RingOverrides {
  std::optional<int> tokens = {};
  std::optional<Rung> rung = {};
  std::optional<Rung> sink_rung = {};
};

// "fp16,static:K4V4,random:K2V2=1,K4V4=3,static:K4V4@64:K4V4": policy names, each with an optional
// ring of its own, @TOKENS[:RUNG[:SINK_RUNG]]; and what no server has: the baseline "naive:K4V4"
// and the bound "oracle:3.0", which has adaptive's ring. The reference comes first whether it is
// named or not; every other arm once, in the order given. `policy_file` is the model's, or null,
// and outlives the arms. INVALID_ARGUMENT names the arm and what is wrong with it,
// FAILED_PRECONDITION what it needs of a policy file.
absl::StatusOr<std::vector<Arm>> ParseArms(std::string_view list, const RingOverrides& overrides,
                                           const PolicyFile* policy_file = nullptr);

// Tokens of a (layer, KV head) that have left the ring when `tokens` have passed: whole pages.
int SettledTokens(const RecentRing& ring, int tokens);

// For plots: arms of one family differ in their budget, which the label names. "static:K4V4@64" is
// K4V4 of "static@64".
struct ArmLabel {
  std::string family, label;
};
ArmLabel LabelOf(const Arm& arm);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_ARMS_H_
