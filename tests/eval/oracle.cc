#include "tests/eval/oracle.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "controller/calibrate/attention_observer.h"
#include "controller/calibrate/exact_run.h"
#include "kvpool/key_means.h"
#include "tests/eval/arms.h"

namespace whit::eval {
namespace {

// Before which query each token is decided: the first of the slice after the one in which its page
// leaves the ring. The number of tokens for those that never are.
std::vector<int> DecidedAt(int tokens, const RecentRing& ring) {
  std::vector<int> decided_at(tokens, tokens);
  int decided = 0;
  for (int passed = kTileTokens; passed < tokens; passed += kTileTokens) {
    for (const int settled = SettledTokens(ring, passed); decided < settled; ++decided) {
      decided_at[decided] = passed;
    }
  }
  return decided_at;
}

float SquaredDistance(const float* x, const float* mean, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) {
    const float difference = x[i] - (mean == nullptr ? 0 : mean[i]);
    sum += difference * difference;
  }
  return sum;
}

class OraclePolicy final : public PrecisionPolicy {
 public:
  OraclePolicy(const FutureLosses& losses, const RungErrors& errors, int head_dim, double price)
      : num_kv_heads_(losses.num_kv_heads), first_(losses.first), tokens_(losses.tokens) {
    for (size_t i = 0; i < losses.key.size(); ++i) {
      rungs_.push_back(CheapestRung(losses.key[i], losses.value[i], errors, price, head_dim));
    }
  }

  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override {
    const int pair = tokens.layer * num_kv_heads_ + tokens.kv_head;
    const Rung* known = rungs_.data() + size_t{1} * pair * tokens_ + tokens.first_position - first_;
    std::copy_n(known, rungs.size(), rungs.data());
  }

  double MeanBits(int head_dim) const {
    double bits = 0;
    for (const Rung rung : rungs_) bits += PackedBits(rung, head_dim);
    return rungs_.empty() ? 0 : bits / static_cast<double>(rungs_.size());
  }

 private:
  const int num_kv_heads_, first_, tokens_;
  std::vector<Rung> rungs_;  // [layer][KV head][token]
};

}  // namespace

OracleRecorder::OracleRecorder(Model& model)
    : model_(model), observer_(std::make_unique<AttentionObserver>(model)) {}

OracleRecorder::~OracleRecorder() = default;

absl::StatusOr<FutureLosses> OracleRecorder::Record(absl::Span<const int32_t> tokens,
                                                    const RecentRing& ring) {
  const ModelConfig& config = model_.config();
  const auto count = static_cast<int>(tokens.size());
  const auto pool = PoolForOneSequence(config, tokens.size());
  if (!pool.ok()) return pool.status();
  PageTable kv = model_.NewPageTable(**pool, RecentRing{});
  observer_->Begin(&kv, DecidedAt(count, ring));
  model_.SetLayerProbe([this](const LayerView& view) { observer_->Observe(view); });
  const absl::Cleanup unset = [this] { model_.SetLayerProbe(nullptr); };
  const absl::Status run = RunExactly(
      model_, tokens, kv, ForwardSlice::Logits::kNone, [](int, int, absl::Span<const float>) {},
      ActivationFormat::kInt16);
  if (!run.ok()) return run;

  const int settled = SettledTokens(ring, count);
  FutureLosses losses = {.num_kv_heads = config.num_kv_heads,
                         .first = std::min(kTileTokens, settled)};
  losses.tokens = settled - losses.first;
  std::vector<float> keys, values;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    for (int head = 0; head < config.num_kv_heads; ++head) {
      kv.Read(layer, head, &keys, &values);
      const AttentionObserver::Sums& sums = observer_->sums(layer, head);
      for (int j = losses.first; j < settled; ++j) {
        const size_t at = size_t{1} * j * config.head_dim;
        const float* mean = kv.key_means() == nullptr
                                ? nullptr
                                : kv.key_means()->mean(KeyMeans::Block(j), layer, head);
        losses.key.push_back(sums.key_importance[j] *
                             SquaredDistance(&keys[at], mean, config.head_dim));
        losses.value.push_back(sums.value_importance[j] *
                               SquaredDistance(&values[at], nullptr, config.head_dim));
      }
    }
  }
  return losses;
}

std::unique_ptr<const PrecisionPolicy> MakeOraclePolicy(const FutureLosses& losses,
                                                        const RungErrors& errors, int head_dim,
                                                        double packed_bits) {
  // Prices span what importances do, and the mean falls as they rise.
  double low = std::log(1e-30), high = std::log(1e30);
  const auto at = [&](double log_price) {
    return std::make_unique<OraclePolicy>(losses, errors, head_dim, std::exp(log_price));
  };
  for (int step = 0; step < 40; ++step) {
    const double middle = (low + high) / 2;
    (at(middle)->MeanBits(head_dim) > packed_bits ? low : high) = middle;
  }
  return at(high);
}

}  // namespace whit::eval
