// SequencePrice: what a sequence pays for its KV bits, and what it got.
#ifndef WHIT_RUNTIME_ENGINE_SEQUENCE_PRICE_H_
#define WHIT_RUNTIME_ENGINE_SEQUENCE_PRICE_H_

#include <optional>

#include "controller/decision_tally.h"
#include "controller/policy_spec.h"
#include "controller/price.h"
#include "kvpool/page_table.h"
#include "runtime/model/model_config.h"

namespace whit {

// What sequences hold, as far as prices are concerned.
struct PriceHoldings {
  double tokens = 0;
  double bits = 0;                    // true bits per element, times tokens
  DecisionTally::Counts decided{};    // of these tokens
  DecisionTally::Counts decisions{};  // the latest of them, that no price has seen yet

  PriceHoldings& operator+=(const PriceHoldings& other);
};

// What a PriceController is to be told so that `held` comes to `target_bits` of true bits: the
// packed bits that decided tokens would have to have. What lies beside them, the sink, the ring and
// part-filled pages, is more than the target allows, the more so in short sequences; tokens to come
// make up for that.
PriceMeasurement MeasureTrueBits(double target_bits, const PriceHoldings& held, double pressure,
                                 const ModelConfig& model);

// Threads: the engine's, but for the tally (decision_tally.h).
class SequencePrice {
 public:
  // `model` outlives it; `curve` is the model's. The price is the sequence's own if it has a
  // target: of packed bits in its policy's name, of true bits beside it (0: none), or the default
  // one if the server has none to give. Decisions about the first `explained_tokens` tokens are
  // also kept one by one.
  SequencePrice(const PrecisionPolicySpec& policy, double target_true_bits,
                const ModelConfig& model, const PriceCurve& curve, bool server_has_target,
                int explained_tokens = 0);

  // Whether the policy asks for a price at all, and whether the server's applies.
  bool pays() const { return pays_; }
  bool follows_server() const { return pays_ && !own_.has_value(); }

  double price() const { return price_; }
  void set_price(double price) { price_ = price; }

  DecisionTally& decisions() { return decisions_; }
  const DecisionTally& decisions() const { return decisions_; }
  // After a step: takes note of what `kv` holds now, and returns what was decided in the step.
  DecisionTally::Counts EndStep(const PageTable& kv);
  // As it was when a page was last filled or decided.
  PriceHoldings TakeHoldings();

  // Of a request that pays a price of its own: moves it towards the target.
  void Update(double pressure);

 private:
  const ModelConfig& model_;
  const bool pays_;
  double target_bits_ = 0;
  bool target_is_packed_ = true;
  std::optional<PriceController> own_;
  double price_ = 0;

  DecisionTally decisions_;
  PriceHoldings held_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_SEQUENCE_PRICE_H_
