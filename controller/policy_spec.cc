#include "controller/policy_spec.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "controller/learned_model.h"

namespace whit {
namespace {

using Kind = PrecisionPolicySpec::Kind;

constexpr std::string_view kFp16 = "fp16", kStatic = "static", kRandom = "random",
                           kStaticAllocated = "static-allocated", kRule = "rule",
                           kLearned = "learned", kAdaptive = "adaptive";

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

absl::StatusOr<PrecisionPolicySpec> ParseStatic(std::string_view text) {
  const absl::StatusOr<Rung> rung = ParseRung(text);
  if (!rung.ok()) return rung.status();
  if (*rung == Rung::kFp16) return PrecisionPolicySpec{};
  return PrecisionPolicySpec{.kind = Kind::kStatic, .rung = *rung};
}

absl::StatusOr<PrecisionPolicySpec> ParseMix(std::string_view text) {
  PrecisionPolicySpec spec = {.kind = Kind::kRandom};
  double total = 0;
  for (absl::string_view part : absl::StrSplit(View(text), ',')) {
    const std::pair<std::string, std::string> item = absl::StrSplit(part, absl::MaxSplits('=', 1));
    absl::StatusOr<Rung> rung = ParseRung(item.first);
    if (!rung.ok()) return rung.status();
    double weight;
    if (!absl::SimpleAtod(item.second, &weight) || !(weight >= 0) || !(weight < 1e9)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "KV policy random: '", part, "' must be RUNG=WEIGHT with a weight of at least 0"));
    }
    spec.mix[static_cast<size_t>(*rung)] += weight;
    total += weight;
  }
  if (!(total > 0)) return absl::InvalidArgumentError("KV policy random: all weights are 0");
  return spec;
}

absl::StatusOr<double> ParsePackedBits(std::string_view policy, std::string_view text) {
  double bits;
  if (absl::SimpleAtod(View(text), &bits) && bits >= kMinPackedBits && bits <= kMaxPackedBits) {
    return bits;
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("KV policy %s: '%s' is no number of bits in [%g, %g]", View(policy),
                      View(text), kMinPackedBits, kMaxPackedBits));
}

absl::StatusOr<PrecisionPolicySpec> ParseRule(std::string_view text) {
  PrecisionPolicySpec spec = {.kind = Kind::kRule};
  for (absl::string_view part : absl::StrSplit(View(text), ',')) {
    const std::pair<std::string, std::string> item = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const std::vector<std::string> numbers = absl::StrSplit(item.second, ':');
    const bool entropy = item.first == "entropy";
    double low, high;
    if ((!entropy && item.first != "attention") || numbers.size() != 2 ||
        !absl::SimpleAtod(numbers[0], &low) || !absl::SimpleAtod(numbers[1], &high) ||
        !(low >= 0 && low <= high && high < 1e9)) {
      return absl::InvalidArgumentError(
          absl::StrCat("KV policy rule: '", part,
                       "' must be entropy=LOW:HIGH or attention=LOW:HIGH with 0 <= LOW <= HIGH"));
    }
    (entropy ? spec.rule.entropy_low : spec.rule.attention_low) = low;
    (entropy ? spec.rule.entropy_high : spec.rule.attention_high) = high;
  }
  return spec;
}

}  // namespace

std::string PrecisionPolicySpec::ToString() const {
  switch (kind) {
    case Kind::kFp16:
      break;
    case Kind::kStatic:
      return absl::StrCat(View(kStatic), ":", View(RungName(rung)));
    case Kind::kRandom: {
      std::string text;
      for (int i = 0; i < kNumRungs; ++i) {
        if (mix[i] == 0) continue;
        absl::StrAppend(&text, text.empty() ? "" : ",", View(RungName(static_cast<Rung>(i))), "=",
                        mix[i]);
      }
      return absl::StrCat(View(kRandom), ":", text);
    }
    case Kind::kStaticAllocated:
      return absl::StrCat(View(kStaticAllocated), ":", packed_bits);
    case Kind::kRule:
      if (rule == RuleThresholds()) return std::string(kRule);
      return absl::StrCat(View(kRule), ":entropy=", rule.entropy_low, ":", rule.entropy_high,
                          ",attention=", rule.attention_low, ":", rule.attention_high);
    case Kind::kLearned:
      return std::string(kLearned);
    case Kind::kAdaptive:
      if (packed_bits == 0) return std::string(kAdaptive);
      return absl::StrCat(View(kAdaptive), ":", packed_bits);
  }
  return std::string(kFp16);
}

absl::StatusOr<PrecisionPolicySpec> ParsePrecisionPolicy(std::string_view name) {
  const size_t colon = std::min(name.find(':'), name.size());
  const std::string_view policy = name.substr(0, colon);
  const bool has_value = colon < name.size();
  const std::string_view value = has_value ? name.substr(colon + 1) : std::string_view();

  if (!has_value && policy == kFp16) return PrecisionPolicySpec{};
  if (!has_value && policy == kLearned) return PrecisionPolicySpec{.kind = Kind::kLearned};
  if (!has_value && policy == kRule) return PrecisionPolicySpec{.kind = Kind::kRule};
  if (!has_value && policy == kAdaptive) return PrecisionPolicySpec{.kind = Kind::kAdaptive};
  if (has_value && policy == kStatic) return ParseStatic(value);
  if (has_value && policy == kRandom) return ParseMix(value);
  if (has_value && policy == kRule) return ParseRule(value);
  if (has_value && (policy == kStaticAllocated || policy == kAdaptive)) {
    const absl::StatusOr<double> bits = ParsePackedBits(policy, value);
    if (!bits.ok()) return bits.status();
    return PrecisionPolicySpec{
        .kind = policy == kAdaptive ? Kind::kAdaptive : Kind::kStaticAllocated,
        .packed_bits = *bits};
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", View(name),
      "' is no KV policy; the policies are fp16, static:<rung>, random:<mix>, "
      "static-allocated:<bits>, rule, rule:<thresholds>, learned, adaptive and adaptive:<bits>"));
}

std::vector<Rung> PossibleRungs(const PrecisionPolicySpec& spec) {
  switch (spec.kind) {
    case Kind::kFp16:
      break;
    case Kind::kStatic:
      return {spec.rung};
    case Kind::kRandom: {
      std::vector<Rung> rungs;
      for (int i = 0; i < kNumRungs; ++i) {
        if (spec.mix[i] > 0) rungs.push_back(static_cast<Rung>(i));
      }
      return rungs;
    }
    case Kind::kRule:
      return {Rung::kK2V2, Rung::kK4V4, Rung::kK8V8};
    case Kind::kLearned:
      return {kLearnedRungs.begin(), kLearnedRungs.end()};
    case Kind::kStaticAllocated:
    case Kind::kAdaptive:
      return {Rung::kK2V2, Rung::kK4V2, Rung::kK4V4, Rung::kK8V4, Rung::kK8V8};
  }
  return {Rung::kFp16};
}

}  // namespace whit
