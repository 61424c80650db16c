#include "controller/static_allocation.h"

#include <algorithm>
#include <array>

#include "controller/generic_importance.h"

namespace whit {
namespace {

// From one rung of a pair's convex hull to the next.
struct Step {
  size_t pair = 0;
  Rung to = Rung::kK2V2;
  double bits = 0;
  double gain_per_bit = 0;
};

// The steps of one pair, each with a smaller gain per bit than the one before. Losses by rung, in
// the order of kQuantizedRungs.
void AppendHull(size_t pair, const std::array<double, kQuantizedRungs.size()>& losses, int head_dim,
                std::vector<Step>& steps) {
  size_t from = 0;
  while (from + 1 < kQuantizedRungs.size()) {
    Step best;
    size_t best_to = 0;
    for (size_t to = from + 1; to < kQuantizedRungs.size(); ++to) {
      const double bits =
          PackedBits(kQuantizedRungs[to], head_dim) - PackedBits(kQuantizedRungs[from], head_dim);
      const double gain_per_bit = (losses[from] - losses[to]) / bits;
      if (gain_per_bit > best.gain_per_bit) {
        best = {
            .pair = pair, .to = kQuantizedRungs[to], .bits = bits, .gain_per_bit = gain_per_bit};
        best_to = to;
      }
    }
    if (best_to == 0) return;  // nothing is gained any more
    steps.push_back(best);
    from = best_to;
  }
}

RungErrors ErrorsOf(const PolicyFile& file) {
  if (!file.importance.has_value()) return kGenericErrors;
  return {.key = file.importance->key_error, .value = file.importance->value_error};
}

}  // namespace

std::vector<Rung> AllocateRungs(absl::Span<const float> sensitivities, const RungErrors& errors,
                                int head_dim, double bits) {
  const size_t pairs = sensitivities.size() / 2;
  std::vector<Step> steps;
  for (size_t pair = 0; pair < pairs; ++pair) {
    std::array<double, kQuantizedRungs.size()> losses;
    for (size_t i = 0; i < losses.size(); ++i) {
      losses[i] =
          Loss(kQuantizedRungs[i], sensitivities[2 * pair], sensitivities[2 * pair + 1], errors);
    }
    AppendHull(pair, losses, head_dim, steps);
  }
  // Stable, so that a pair's steps keep their order.
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.gain_per_bit > b.gain_per_bit; });
  std::vector<Rung> rungs(pairs, Rung::kK2V2);
  std::vector<bool> stopped(pairs, false);  // a step of this pair did not fit: none after it either
  double left = static_cast<double>(pairs) * (bits - PackedBits(Rung::kK2V2, head_dim));
  for (const Step& step : steps) {
    if (step.bits > left + 1e-9) stopped[step.pair] = true;
    if (stopped[step.pair]) continue;
    rungs[step.pair] = step.to;
    left -= step.bits;
  }
  return rungs;
}

StaticAllocatedPolicy::StaticAllocatedPolicy(const PolicyFile& file, double packed_bits)
    : num_kv_heads_(file.model.num_kv_heads),
      rungs_(AllocateRungs(file.sensitivities, ErrorsOf(file), file.model.head_dim, packed_bits)) {}

void StaticAllocatedPolicy::Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const {
  std::fill(rungs.begin(), rungs.end(), rungs_[tokens.layer * num_kv_heads_ + tokens.kv_head]);
}

}  // namespace whit
