#include "controller/calibrate/price_curve.h"

#include <cmath>
#include <cstddef>
#include <utility>

#include "kvpool/rung.h"

namespace whit {
namespace {

constexpr int kPoints = 64;
// The curve ends where bits are this near to the most and the fewest that there are.
constexpr double kNear = 0.01;

constexpr std::array<Rung, 5> kRungs = {Rung::kK2V2, Rung::kK4V2, Rung::kK4V4, Rung::kK8V4,
                                        Rung::kK8V8};

int ErrorIndex(int bits) { return bits == 2 ? 0 : bits == 4 ? 1 : 2; }

// A token's codes and scales.
double Bits(Rung rung, int head_dim) {
  return 8.0 * static_cast<double>(PageBytes(rung, head_dim)) / kTileTokens;
}

using Cost = std::array<float, kRungs.size()>;  // of each rung, without its price

class Market {
 public:
  Market(std::vector<std::vector<Cost>> costs, int head_dim) : costs_(std::move(costs)) {
    for (size_t i = 0; i < kRungs.size(); ++i) bits_[i] = Bits(kRungs[i], head_dim);
    elements_ = 2.0 * head_dim;
  }

  // Mean over the tokens of bits per element.
  double BitsAt(double price) const {
    double sum = 0;
    for (const std::vector<Cost>& context : costs_) {
      double bits = 0;
      for (const Cost& cost : context) {
        size_t best = 0;
        for (size_t i = 1; i < cost.size(); ++i) {
          if (cost[i] + price * bits_[i] < cost[best] + price * bits_[best]) best = i;
        }
        bits += bits_[best];
      }
      sum += bits / static_cast<double>(context.size());
    }
    return sum / static_cast<double>(costs_.size()) / elements_;
  }
  double most() const { return bits_.back() / elements_; }
  double fewest() const { return bits_.front() / elements_; }

 private:
  const std::vector<std::vector<Cost>> costs_;  // [context][token]
  std::array<double, kRungs.size()> bits_;
  double elements_;
};

// The logarithm of the price at which bits fall below `bits`.
double FindLogPrice(const Market& market, double bits) {
  double low = std::log(1e-30), high = std::log(1e30);
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    (market.BitsAt(std::exp(middle)) > bits ? low : high) = middle;
  }
  return high;
}

}  // namespace

std::vector<PolicyFile::PricePoint> PriceCurve(
    absl::Span<const SamplesOfContext> contexts,
    absl::Span<const std::vector<std::array<float, 2>>> predicted,
    const std::array<float, 3>& key_error, const std::array<float, 3>& value_error, int head_dim) {
  std::vector<std::vector<Cost>> costs;
  for (size_t c = 0; c < contexts.size(); ++c) {
    const std::vector<ImportanceSample>& samples = contexts[c].held_out;
    if (samples.empty()) continue;
    std::vector<Cost>& of_context = costs.emplace_back(samples.size());
    for (size_t i = 0; i < samples.size(); ++i) {
      const std::array<float, 2> energy = samples[i].energy();
      for (size_t rung = 0; rung < kRungs.size(); ++rung) {
        of_context[i][rung] =
            predicted[c][i][0] * energy[0] * key_error[ErrorIndex(KeyBits(kRungs[rung]))] +
            predicted[c][i][1] * energy[1] * value_error[ErrorIndex(ValueBits(kRungs[rung]))];
      }
    }
  }
  if (costs.empty()) return {};

  const Market market(std::move(costs), head_dim);
  const double range = market.most() - market.fewest();
  const double first = FindLogPrice(market, market.most() - kNear * range);
  const double last = FindLogPrice(market, market.fewest() + kNear * range);
  std::vector<PolicyFile::PricePoint> curve;
  for (int i = 0; i < kPoints; ++i) {
    const double price = std::exp(first + (last - first) * i / (kPoints - 1));
    const PolicyFile::PricePoint point = {.bits = static_cast<float>(market.BitsAt(price)),
                                          .price = static_cast<float>(price)};
    if (curve.empty() || point.price > curve.back().price) curve.push_back(point);
  }
  return curve;
}

}  // namespace whit
