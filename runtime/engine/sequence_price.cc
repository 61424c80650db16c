#include "runtime/engine/sequence_price.h"

#include <algorithm>
#include <utility>

namespace whit {
namespace {

double TokensOf(const DecisionTally::Counts& decisions, const ModelConfig& model) {
  return static_cast<double>(NumDecisions(decisions)) / (model.num_layers * model.num_kv_heads);
}

PriceMeasurement MeasurePackedBits(double target_bits, const PriceHoldings& held, double pressure,
                                   const ModelConfig& model) {
  return {.target_bits = target_bits,
          .held_bits = MeanPackedBits(held.decided, model.head_dim),
          .held_tokens = TokensOf(held.decided, model),
          .decided_bits = MeanPackedBits(held.decisions, model.head_dim),
          .decided_tokens = TokensOf(held.decisions, model),
          .pressure = pressure};
}

}  // namespace

PriceHoldings& PriceHoldings::operator+=(const PriceHoldings& other) {
  tokens += other.tokens;
  bits += other.bits;
  AddCounts(other.decided, decided);
  AddCounts(other.decisions, decisions);
  return *this;
}

PriceMeasurement MeasureTrueBits(double target_bits, const PriceHoldings& held, double pressure,
                                 const ModelConfig& model) {
  PriceMeasurement measured = MeasurePackedBits(target_bits, held, pressure, model);
  if (measured.held_tokens == 0) return measured;
  // Where few of the tokens are decided yet, these few need not make up for all.
  const double movable = std::max(measured.held_tokens, held.tokens / 2);
  measured.target_bits = measured.held_bits + (target_bits * held.tokens - held.bits) / movable;
  return measured;
}

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
  const DecisionTally::Counts before = std::exchange(held_.decided, decisions_.counts());
  DecisionTally::Counts step;
  for (int i = 0; i < kNumRungs; ++i) step[i] = held_.decided[i] - before[i];
  AddCounts(step, held_.decisions);
  const bool new_page =
      kv.num_tokens() / kTileTokens != static_cast<int>(held_.tokens) / kTileTokens;
  if (pays_ && (new_page || NumDecisions(step) > 0)) {
    const PageTable::Usage usage = kv.usage();
    held_.tokens = kv.num_tokens();
    held_.bits = 8 * static_cast<double>(usage.page_bytes + usage.metadata_bytes) /
                 static_cast<double>(model_.kv_elements_per_token());
  }
  return step;
}

PriceHoldings SequencePrice::TakeHoldings() {
  PriceHoldings held = held_;
  held_.decisions = {};
  return held;
}

void SequencePrice::Update(double pressure) {
  const auto measure = target_is_packed_ ? MeasurePackedBits : MeasureTrueBits;
  own_->Update(measure(target_bits_, TakeHoldings(), pressure, model_));
  price_ = own_->price();
}

}  // namespace whit
