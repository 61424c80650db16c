#include "controller/precision_policy.h"

#include <algorithm>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace whit {
namespace {

constexpr std::string_view kFp16 = "fp16", kStaticPrefix = "static:", kRandomPrefix = "random:";
constexpr std::string_view kOfTheDesign[] = {"rule", "learned", "adaptive"};

class StaticPolicy final : public PrecisionPolicy {
 public:
  explicit StaticPolicy(Rung rung) : rung_(rung) {}
  void Decide(const Tokens&, absl::Span<Rung> rungs) const override {
    std::fill(rungs.begin(), rungs.end(), rung_);
  }

 private:
  const Rung rung_;
};

// Draws by hashing (layer, KV head, position), so that the same token of the same request always
// gets the same rung.
class RandomPolicy final : public PrecisionPolicy {
 public:
  explicit RandomPolicy(const std::array<double, kNumRungs>& mix) {
    const double total = std::accumulate(mix.begin(), mix.end(), 0.0);
    double sum = 0;
    for (int i = 0; i < kNumRungs; ++i) cumulative_[i] = (sum += mix[i]) / total;
  }

  void Decide(const Tokens& tokens, absl::Span<Rung> rungs) const override {
    for (size_t i = 0; i < rungs.size(); ++i) {
      const uint64_t hash = Mix(Mix(Mix(tokens.layer) + tokens.kv_head) +
                                static_cast<uint64_t>(tokens.first_position) + i);
      const double draw = static_cast<double>(hash >> 11) * 0x1p-53;
      const auto it = std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, draw);
      rungs[i] = static_cast<Rung>(it - cumulative_.begin());
    }
  }

 private:
  // The finalizer of SplitMix64 (Steele et al. 2014).
  static uint64_t Mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }

  std::array<double, kNumRungs> cumulative_;
};

absl::StatusOr<PrecisionPolicySpec> ParseMix(std::string_view text) {
  PrecisionPolicySpec spec = {.kind = PrecisionPolicySpec::Kind::kRandom};
  double total = 0;
  for (absl::string_view part : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
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

}  // namespace

std::string PrecisionPolicySpec::ToString() const {
  switch (kind) {
    case Kind::kFp16:
      break;
    case Kind::kStatic:
      return absl::StrCat(std::string(kStaticPrefix), std::string(RungName(rung)));
    case Kind::kRandom: {
      std::string text(kRandomPrefix);
      for (int i = 0; i < kNumRungs; ++i) {
        if (mix[i] == 0) continue;
        absl::StrAppend(&text, text.size() > kRandomPrefix.size() ? "," : "",
                        std::string(RungName(static_cast<Rung>(i))), "=", mix[i]);
      }
      return text;
    }
  }
  return std::string(kFp16);
}

absl::StatusOr<PrecisionPolicySpec> ParsePrecisionPolicy(std::string_view name) {
  if (name == kFp16) return PrecisionPolicySpec{};
  if (name.starts_with(kStaticPrefix)) {
    absl::StatusOr<Rung> rung = ParseRung(name.substr(kStaticPrefix.size()));
    if (!rung.ok()) return rung.status();
    if (*rung == Rung::kFp16) return PrecisionPolicySpec{};
    return PrecisionPolicySpec{.kind = PrecisionPolicySpec::Kind::kStatic, .rung = *rung};
  }
  if (name.starts_with(kRandomPrefix)) return ParseMix(name.substr(kRandomPrefix.size()));
  if (std::find(std::begin(kOfTheDesign), std::end(kOfTheDesign), name) != std::end(kOfTheDesign)) {
    return absl::UnimplementedError(
        absl::StrCat("KV policy '", std::string(name), "' is not in this build"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", std::string(name),
                   "' is no KV policy; the policies are fp16, static:<rung>, random:<mix>, rule, "
                   "learned and adaptive"));
}

RecentRing RingOf(const PrecisionPolicySpec& spec) {
  if (spec.kind == PrecisionPolicySpec::Kind::kFp16) {
    return {.rung = Rung::kFp16, .tokens = 0, .sink_rung = Rung::kFp16};
  }
  return {.rung = Rung::kK8V8, .tokens = 32, .sink_rung = Rung::kFp16};
}

std::unique_ptr<const PrecisionPolicy> MakePrecisionPolicy(const PrecisionPolicySpec& spec) {
  switch (spec.kind) {
    case PrecisionPolicySpec::Kind::kFp16:
      break;
    case PrecisionPolicySpec::Kind::kStatic:
      return std::make_unique<StaticPolicy>(spec.rung);
    case PrecisionPolicySpec::Kind::kRandom:
      return std::make_unique<RandomPolicy>(spec.mix);
  }
  return std::make_unique<StaticPolicy>(Rung::kFp16);
}

}  // namespace whit
