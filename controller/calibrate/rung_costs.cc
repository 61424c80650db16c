#include "controller/calibrate/rung_costs.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "controller/precision_policy.h"
#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"

namespace whit {
namespace {

// Activations have 16 bits: the noise of rounding them to 8 costs more than keys and values of 8
// bits do.
constexpr int kPass = Model::kPrefillBlock;

// A sequence kept at one rung; FP16 needs no policy.
struct Arm {
  PrecisionPolicySpec spec;
  std::unique_ptr<const PrecisionPolicy> policy;
};

absl::StatusOr<std::vector<Arm>> MakeArms() {
  std::vector<Arm> arms(kNumRungs);
  for (int rung = 0; rung < kNumRungs; ++rung) {
    if (static_cast<Rung>(rung) == Rung::kFp16) continue;
    arms[rung].spec.kind = PrecisionPolicySpec::Kind::kStatic;
    arms[rung].spec.rung = static_cast<Rung>(rung);
    absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> policy =
        MakePrecisionPolicy(arms[rung].spec, nullptr);
    if (!policy.ok()) return policy.status();
    arms[rung].policy = *std::move(policy);
  }
  return arms;
}

// Sum over rows of the KL divergence of softmax(exact) from softmax(other), [rows][vocab_size].
double SumDivergence(absl::Span<const float> exact, absl::Span<const float> other,
                     size_t vocab_size, ThreadPool& pool) {
  std::vector<double> of_rows(exact.size() / vocab_size);
  pool.ParallelFor(of_rows.size(), 1, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      const auto size = static_cast<Eigen::Index>(vocab_size);
      const Eigen::Map<const Eigen::ArrayXf> x(exact.data() + row * vocab_size, size);
      const Eigen::Map<const Eigen::ArrayXf> y(other.data() + row * vocab_size, size);
      // The divergence is small beside the logits: differences are taken first, so that it is not
      // lost in their rounding. With p = softmax(x), z = y - x: ln sum p e^z - sum p z.
      Eigen::ArrayXf p = (x - x.maxCoeff()).exp();
      p /= p.sum();
      Eigen::ArrayXf z = y - x;
      z -= (p * z).sum();
      const double rest = (p * z).sum();  // of rounding
      // sum p (e^z - 1 - z), by its series where e^z - 1 would round.
      const Eigen::ArrayXf excess =
          (z.abs() < 0.05f)
              .select(z.square() * (0.5f + z * (1.0f / 6 + z * (1.0f / 24))), z.exp() - 1 - z);
      of_rows[row] = std::log1p((p * excess).cast<double>().sum() + rest) - rest;
    }
  });
  double sum = 0;
  for (double of_row : of_rows) sum += of_row;
  return sum;
}

}  // namespace

absl::StatusOr<RungDivergence> MeasureDivergence(Model& model, absl::Span<const TextWindow> windows,
                                                 absl::FunctionRef<void(size_t tokens)> progress) {
  const ModelConfig& config = model.config();
  const absl::StatusOr<std::vector<Arm>> made = MakeArms();
  if (!made.ok()) return made.status();
  const std::vector<Arm>& arms = *made;
  size_t longest = 0, tokens = 0, done = 0;
  for (const TextWindow& window : windows) {
    longest = std::max(longest, window.tokens.size());
    tokens += window.tokens.size();
  }
  // All arms together; each may leave a page open at its rung.
  const size_t page_bytes = PageBytes(Rung::kFp16, config.head_dim);
  const size_t pages =
      arms.size() * (longest / kTileTokens + 2) * config.num_layers * config.num_kv_heads;
  const size_t slabs = pages * page_bytes / PagePool::kSlabBytes + 2 * kNumRungs;
  absl::StatusOr<std::unique_ptr<PagePool>> pool = PagePool::Create(
      {.capacity_bytes = slabs * PagePool::kSlabBytes, .head_dim = config.head_dim});
  if (!pool.ok()) return pool.status();

  RungDivergence sums = {};
  std::vector<float> exact;
  for (const TextWindow& window : windows) {
    std::vector<PageTable> tables;
    for (const Arm& arm : arms) tables.push_back(model.NewPageTable(**pool, RingOf(arm.spec)));
    absl::Span<const int32_t> rest = window.tokens;
    while (!rest.empty()) {
      const auto slice = rest.subspan(0, kPass);
      for (size_t i = arms.size(); i-- > 0;) {  // FP16 first
        const bool is_exact = arms[i].policy == nullptr;
        const absl::Span<const float> logits =
            model.Forward({{.tokens = slice,
                            .first_position = tables[i].num_tokens(),
                            .kv = &tables[i],
                            .policy = arms[i].policy.get(),
                            .activations = ActivationFormat::kInt16,
                            .logits = ForwardSlice::Logits::kAll}});
        if (!tables[i].status().ok()) return tables[i].status();
        if (is_exact) {
          exact.assign(logits.begin(), logits.end());
        } else {
          sums[i] += SumDivergence(exact, logits, config.vocab_size, model.thread_pool());
        }
        progress(done += slice.size());
      }
      rest.remove_prefix(slice.size());
    }
  }
  for (double& sum : sums) sum /= std::max<double>(static_cast<double>(tokens), 1);
  return sums;
}

RungCosts CostsOf(const RungDivergence& divergence, absl::Span<const float> sensitivities,
                  const std::array<float, 3>& key_error, const std::array<float, 3>& value_error) {
  double keys = 0, values = 0;
  for (size_t i = 0; i < sensitivities.size(); i += 2) {
    keys += sensitivities[i];
    values += sensitivities[i + 1];
  }
  const auto step = [&](Rung from, Rung to) {
    return divergence[static_cast<size_t>(to)] - divergence[static_cast<size_t>(from)];
  };
  // In units of the divergence per estimate. A step's estimate is the difference of two errors.
  const double value4 =
      step(Rung::kK8V8, Rung::kK8V4) / (values * (value_error[1] - value_error[2]));
  const double key4 = step(Rung::kK8V4, Rung::kK4V4) / (keys * (key_error[1] - key_error[2]));
  RungCosts costs;
  if (!(value4 > 0) || !(key4 > 0) || !std::isfinite(value4) || !std::isfinite(key4)) return costs;
  const auto bounded = [](double cost, double least) {
    return static_cast<float>(std::clamp(cost, least, least * kMaxRungCost));
  };
  const double balance = std::clamp<double>(key4 / value4, 1.0 / kMaxRungCost, kMaxRungCost);
  costs.key[1] = costs.key[2] = static_cast<float>(balance);
  // At 2 bits: what the step adds to the cost at 4 bits.
  const double value2 =
      (step(Rung::kK4V4, Rung::kK4V2) / value4 / values + value_error[1]) / value_error[0];
  const double key2 =
      (step(Rung::kK4V2, Rung::kK2V2) / value4 / keys + balance * key_error[1]) / key_error[0];
  costs.value[0] = bounded(value2, 1);
  costs.key[0] = bounded(key2, balance);
  return costs;
}

}  // namespace whit
