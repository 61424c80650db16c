#include "tests/eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace whit::eval {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int kResamples = 4000;
constexpr uint64_t kSeed = 20260224;

}  // namespace

double Quantile(std::vector<float> values, double q) {
  if (values.empty()) return kNan;
  const double rank = q * static_cast<double>(values.size() - 1);
  const auto below = values.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(values.begin(), below, values.end());
  const double low = *below;
  if (below + 1 == values.end()) return low;
  const double high = *std::min_element(below + 1, values.end());
  return low + (high - low) * (rank - std::floor(rank));
}

double Mean(absl::Span<const Block> blocks) {
  Block all;
  for (const Block& block : blocks) {
    all.sum += block.sum;
    all.count += block.count;
  }
  return all.sum / static_cast<double>(all.count);
}

Interval BootstrapMean(absl::Span<const Block> blocks) {
  if (blocks.size() < 2) return {kNan, kNan};
  std::mt19937_64 rng(kSeed);
  std::vector<float> means;
  std::vector<Block> drawn(blocks.size());
  for (int i = 0; i < kResamples; ++i) {
    // The bias of the remainder is below 1e-15.
    for (Block& block : drawn) block = blocks[rng() % blocks.size()];
    means.push_back(static_cast<float>(Mean(drawn)));
  }
  return {Quantile(means, 0.025), Quantile(means, 0.975)};
}

double McNemarP(int64_t only_first, int64_t only_second) {
  const int64_t n = only_first + only_second;
  if (n == 0) return 1;
  // Twice the binomial tail up to the smaller count.
  double tail = 0;
  for (int64_t k = 0; k <= std::min(only_first, only_second); ++k) {
    tail += std::exp(std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) -
                     static_cast<double>(n) * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

}  // namespace whit::eval
