#include "controller/precision_policy.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "controller/adaptive_policy.h"
#include "controller/learned_policy.h"
#include "controller/rule_policy.h"
#include "controller/static_allocation.h"

namespace whit {
namespace {

class StaticPolicy final : public PrecisionPolicy {
 public:
  explicit StaticPolicy(Rung rung) : rung_(rung) {}
  void Decide(const LeavingTokens&, absl::Span<Rung> rungs) const override {
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

  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override {
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

absl::Status Lacks(const PrecisionPolicySpec& spec, const PolicyFile* file, const char* section) {
  return absl::FailedPreconditionError(absl::StrCat(
      "KV policy ", spec.ToString(), " needs a policy file with the section '", section, "', and ",
      file == nullptr ? "this model has no policy file" : "this model's file has none",
      "; whit-calibrate makes one"));
}

}  // namespace

RecentRing RingOf(const PrecisionPolicySpec& spec, const RecentRing& quantizing) {
  if (spec.kind == PrecisionPolicySpec::Kind::kFp16) {
    return {.rung = Rung::kFp16, .tokens = 0, .sink_rung = Rung::kFp16};
  }
  RecentRing ring = quantizing;
  if (spec.kind == PrecisionPolicySpec::Kind::kAdaptive && ring.growth == 0) {
    ring.tokens = std::max(ring.tokens, 48);
    ring.growth = 64;
    ring.max_tokens = 256;
  }
  return ring;
}

absl::Status CheckRingTokens(int64_t tokens) {
  if (tokens >= 0 && tokens <= kMaxRingTokens && tokens % kTileTokens == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(tokens, " is no multiple of ", kTileTokens, " in [0, ", kMaxRingTokens, "]"));
}

absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> MakePrecisionPolicy(
    const PrecisionPolicySpec& spec, const PolicyFile* file) {
  using Kind = PrecisionPolicySpec::Kind;
  switch (spec.kind) {
    case Kind::kFp16:
      break;
    case Kind::kStatic:
      return std::make_unique<StaticPolicy>(spec.rung);
    case Kind::kRandom:
      return std::make_unique<RandomPolicy>(spec.mix);
    case Kind::kStaticAllocated:
      if (file == nullptr || file->sensitivities.empty()) return Lacks(spec, file, "sensitivities");
      return std::make_unique<StaticAllocatedPolicy>(*file, spec.packed_bits);
    case Kind::kRule:
      return std::make_unique<RulePolicy>(spec.rule);
    case Kind::kLearned:
      if (file == nullptr || !file->learned.has_value()) return Lacks(spec, file, "learned");
      return std::make_unique<LearnedPolicy>(*file->learned);
    case Kind::kAdaptive:
      if (file == nullptr || !file->importance.has_value()) {
        return std::make_unique<GenericAdaptivePolicy>();
      }
      return std::make_unique<AdaptivePolicy>(file->model, *file->importance);
  }
  return std::make_unique<StaticPolicy>(Rung::kFp16);
}

}  // namespace whit
