#include "controller/calibrate/price_points.h"

#include <cmath>
#include <cstddef>
#include <utility>

namespace whit {
namespace {

constexpr int kPoints = 64;
// The points end where bits are this near to the most and the fewest that there are, in their
// range.
constexpr double kNear = 0.01;

struct Losses {
  double key = 0, value = 0;  // importance * energy
};

class Market {
 public:
  Market(std::vector<std::vector<Losses>> contexts, const RungErrors& errors, int head_dim)
      : contexts_(std::move(contexts)), errors_(errors), head_dim_(head_dim) {}

  // Mean over the tokens of packed bits.
  double BitsAt(double price) const {
    double sum = 0;
    for (const std::vector<Losses>& tokens : contexts_) {
      double bits = 0;
      for (const Losses& token : tokens) {
        bits +=
            PackedBits(CheapestRung(token.key, token.value, errors_, price, head_dim_), head_dim_);
      }
      sum += bits / static_cast<double>(tokens.size());
    }
    return sum / static_cast<double>(contexts_.size());
  }

  // The logarithm of the price at which bits fall to `bits`.
  double LogPriceOf(double bits) const {
    double low = std::log(1e-30), high = std::log(1e30);
    for (int i = 0; i < 30; ++i) {
      const double middle = (low + high) / 2;
      (BitsAt(std::exp(middle)) > bits ? low : high) = middle;
    }
    return high;
  }

 private:
  const std::vector<std::vector<Losses>> contexts_;  // [context][token]
  const RungErrors errors_;
  const int head_dim_;
};

}  // namespace

std::vector<PolicyFile::PricePoint> MeasurePrices(
    absl::Span<const SamplesOfContext> contexts,
    absl::Span<const std::vector<std::array<float, 2>>> predicted, const RungErrors& errors,
    int head_dim) {
  std::vector<std::vector<Losses>> losses;
  for (size_t c = 0; c < contexts.size(); ++c) {
    const std::vector<ImportanceSample>& samples = contexts[c].held_out;
    if (samples.empty()) continue;
    std::vector<Losses>& tokens = losses.emplace_back();
    for (size_t i = 0; i < samples.size(); ++i) {
      const std::array<float, 2> energy = samples[i].energy();
      tokens.push_back({.key = double{predicted[c][i][0]} * energy[0],
                        .value = double{predicted[c][i][1]} * energy[1]});
    }
  }
  if (losses.empty()) return {};

  const Market market(std::move(losses), errors, head_dim);
  const double fewest = PackedBits(kQuantizedRungs.front(), head_dim);
  const double most = PackedBits(kQuantizedRungs.back(), head_dim);
  const double first = market.LogPriceOf(most - kNear * (most - fewest));
  const double last = market.LogPriceOf(fewest + kNear * (most - fewest));
  std::vector<PolicyFile::PricePoint> points;
  for (int i = 0; i < kPoints; ++i) {
    const double price = std::exp(first + (last - first) * i / (kPoints - 1));
    const PolicyFile::PricePoint point = {.bits = static_cast<float>(market.BitsAt(price)),
                                          .price = static_cast<float>(price)};
    if (points.empty() || point.price > points.back().price) points.push_back(point);
  }
  return points;
}

}  // namespace whit
