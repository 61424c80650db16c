#include "runtime/engine/sequence_price.h"

#include <utility>

namespace whit {

SequencePrice::SequencePrice(const PrecisionPolicySpec& policy, double target_true_bits,
                             const ModelConfig& model, const PriceCurve& curve,
                             bool server_has_target, int explained_tokens)
    : model_(model),
      pays_(policy.kind == PrecisionPolicySpec::Kind::kAdaptive),
      decisions_(explained_tokens) {
  if (!pays_) return;
  if (target_true_bits > 0) {
    target_bits_ = target_true_bits;
    target_is_packed_ = false;
  } else if (policy.packed_bits > 0) {
    target_bits_ = policy.packed_bits;
  } else if (!server_has_target) {
    target_bits_ = kDefaultPackedBits;
  } else {
    return;
  }
  own_.emplace(curve, target_bits_);
  price_ = own_->price();
}

DecisionTally::Counts SequencePrice::EndStep(const PageTable& kv) {
  const DecisionTally::Counts before = std::exchange(total_, decisions_.counts());
  DecisionTally::Counts step;
  for (int i = 0; i < kNumRungs; ++i) {
    step[i] = total_[i] - before[i];
    untaken_[i] += step[i];
  }
  if (pays_ && NumDecisions(step) > 0) {
    const PageTable::Usage usage = kv.usage();
    held_tokens_ = kv.num_tokens();
    held_bits_ = 8 * static_cast<double>(usage.page_bytes + usage.metadata_bytes) /
                 (held_tokens_ * static_cast<double>(model_.kv_elements_per_token()));
  }
  return step;
}

DecisionTally::Counts SequencePrice::TakeDecided() { return std::exchange(untaken_, {}); }

void SequencePrice::Update(double pressure) {
  const DecisionTally::Counts decided = TakeDecided();
  const double lists = model_.num_layers * model_.num_kv_heads;
  own_->Update(
      {.target_bits = target_bits_,
       .held_bits = target_is_packed_ ? MeanPackedBits(total_, model_.head_dim) : held_bits_,
       .held_tokens =
           target_is_packed_ ? static_cast<double>(NumDecisions(total_)) / lists : held_tokens_,
       .decided_bits = MeanPackedBits(decided, model_.head_dim),
       .decided_tokens = static_cast<double>(NumDecisions(decided)) / lists,
       .pressure = pressure});
  price_ = own_->price();
}

}  // namespace whit
