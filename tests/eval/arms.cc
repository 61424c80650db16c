#include "tests/eval/arms.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "controller/generic_importance.h"

namespace whit::eval {
namespace {

constexpr std::string_view kNaive = "naive:", kOracle = "oracle", kAdaptive = "adaptive";

absl::Status Named(std::string_view arm, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("arm '", std::string(arm), "': ", status.message()));
}

absl::Status Invalid(std::string_view arm, std::string_view why) {
  return Named(arm, absl::InvalidArgumentError(std::string(why)));
}

// Splits at the commas between arms, not at those within a random mix or a rule: what follows the
// latter is NAME=VALUE, which begins no arm.
std::vector<std::string> SplitList(std::string_view list) {
  std::vector<std::string> names;
  const std::vector<std::string> parts = absl::StrSplit(std::string(list), ',', absl::SkipEmpty());
  for (const std::string& part : parts) {
    const bool continues = part.find('=') != part.npos && part.find(':') > part.find('=');
    if (continues && !names.empty()) {
      absl::StrAppend(&names.back(), ",", part);
    } else {
      names.push_back(part);
    }
  }
  return names;
}

// TOKENS[:RUNG[:SINK_RUNG]]
absl::StatusOr<RingOverrides> ParseRing(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  RingOverrides ring;
  int tokens;
  if (parts.size() > 3 || !absl::SimpleAtoi(parts[0], &tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'@", text, "' is no ring; write @TOKENS[:RUNG[:SINK_RUNG]]"));
  }
  ring.tokens = tokens;
  for (size_t i = 1; i < parts.size(); ++i) {
    const absl::StatusOr<Rung> rung = ParseRung(parts[i]);
    if (!rung.ok()) return rung.status();
    (i == 1 ? ring.rung : ring.sink_rung) = *rung;
  }
  return ring;
}

void Apply(const RingOverrides& overrides, RecentRing& ring) {
  if (overrides.tokens.has_value()) {
    ring.tokens = *overrides.tokens;
    ring.growth = 0;
  }
  ring.rung = overrides.rung.value_or(ring.rung);
  ring.sink_rung = overrides.sink_rung.value_or(ring.sink_rung);
}

// Without a policy, nothing ever leaves the ring: pages stay as they were filled.
absl::StatusOr<Arm> ParseNaive(const std::string& name) {
  const absl::StatusOr<Rung> rung = ParseRung(name.substr(kNaive.size()));
  if (!rung.ok()) return Named(name, rung.status());
  if (*rung == Rung::kFp16) return Invalid(name, "FP16 is not quantized; write a rung below it");
  return Arm{.name = name, .ring = RingOf({}), .naive_rung = *rung};
}

// An arm as a policy's name says it is.
absl::StatusOr<Arm> ParsePolicy(const std::string& name, const PolicyFile* policy_file) {
  const absl::StatusOr<PrecisionPolicySpec> spec = ParsePrecisionPolicy(name);
  if (!spec.ok()) return absl::InvalidArgumentError(spec.status().message());
  absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> policy =
      MakePrecisionPolicy(*spec, policy_file);
  if (!policy.ok()) return policy.status();
  Arm arm = {
      .name = spec->ToString(), .spec = *spec, .ring = RingOf(*spec), .policy = *std::move(policy)};
  // Prices mean nothing without the importance that they were measured with.
  if (policy_file != nullptr && policy_file->importance) arm.prices = policy_file->prices;
  return arm;
}

// As adaptive with the same budget.
absl::StatusOr<Arm> ParseOracle(const std::string& name, const PolicyFile* policy_file) {
  const absl::StatusOr<PrecisionPolicySpec> adaptive =
      ParsePrecisionPolicy(std::string(kAdaptive) + name.substr(kOracle.size()));
  if (!adaptive.ok()) return absl::InvalidArgumentError(adaptive.status().message());
  OracleBudget budget = {
      .packed_bits = adaptive->packed_bits > 0 ? adaptive->packed_bits : kDefaultPackedBits,
      .errors = kGenericErrors};
  if (policy_file != nullptr && policy_file->importance) {
    budget.errors = {.key = policy_file->importance->key_error,
                     .value = policy_file->importance->value_error};
  }
  return Arm{.name = std::string(kOracle) + adaptive->ToString().substr(kAdaptive.size()),
             .ring = RingOf(*adaptive),
             .oracle = budget};
}

absl::StatusOr<Arm> ParseArm(const std::string& name, const RingOverrides& overrides,
                             const PolicyFile* policy_file) {
  if (name.starts_with(kNaive)) return ParseNaive(name);
  const std::pair<std::string, std::string> halves = absl::StrSplit(name, absl::MaxSplits('@', 1));
  const bool oracle = halves.first.substr(0, halves.first.find(':')) == kOracle;
  absl::StatusOr<Arm> parsed =
      oracle ? ParseOracle(halves.first, policy_file) : ParsePolicy(halves.first, policy_file);
  if (!parsed.ok()) return Named(name, parsed.status());
  Arm arm = *std::move(parsed);
  const bool reference = IsReference(arm);
  if (!reference) Apply(overrides, arm.ring);
  if (name.find('@') != name.npos) {
    if (reference) return Invalid(name, "all its tokens are alike; it takes no ring");
    const absl::StatusOr<RingOverrides> own = ParseRing(halves.second);
    if (!own.ok()) return Invalid(name, std::string(own.status().message()));
    Apply(*own, arm.ring);
    absl::StrAppend(&arm.name, "@", halves.second);
  }
  // Tokens leave the ring by whole pages. Only at multiples of a page does the ring look the same
  // to a slice of 16 tokens as to 16 single ones.
  if (arm.ring.tokens < 0 || arm.ring.tokens % kTileTokens != 0) {
    return Invalid(
        name, absl::StrCat("the ring has ", arm.ring.tokens, " tokens; it must be a multiple of ",
                           kTileTokens, ", at least 0"));
  }
  return arm;
}

}  // namespace

Arm ReferenceArm() {
  const PrecisionPolicySpec fp16;
  return {.name = fp16.ToString(),
          .ring = RingOf(fp16),
          .policy = *MakePrecisionPolicy(fp16, /*file=*/nullptr)};
}

bool IsReference(const Arm& arm) { return arm.name == PrecisionPolicySpec().ToString(); }

absl::StatusOr<std::vector<Arm>> ParseArms(std::string_view list, const RingOverrides& overrides,
                                           const PolicyFile* policy_file) {
  std::vector<Arm> arms = {ReferenceArm()};
  for (const std::string& name : SplitList(list)) {
    absl::StatusOr<Arm> arm = ParseArm(name, overrides, policy_file);
    if (!arm.ok()) return arm.status();
    const bool known = std::any_of(arms.begin(), arms.end(),
                                   [&](const Arm& other) { return other.name == arm->name; });
    if (!known) arms.push_back(*std::move(arm));
  }
  return arms;
}

int SettledTokens(const RecentRing& ring, int tokens) {
  return std::max(0, (tokens - ring.tokens_at(tokens)) / kTileTokens * kTileTokens);
}

ArmLabel LabelOf(const Arm& arm) {
  const size_t ring = std::min(arm.name.find('@'), arm.name.size());
  const std::string policy = arm.name.substr(0, ring);
  const size_t colon = policy.find(':');
  return {.family = policy.substr(0, colon) + arm.name.substr(ring),
          .label = colon == policy.npos ? policy : policy.substr(colon + 1)};
}

}  // namespace whit::eval
