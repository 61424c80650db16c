#include "controller/generic_importance.h"

#include <cmath>
#include <numeric>

namespace whit {
namespace {

// Weights of standardized features over their nominal spread.
constexpr float kAttentionWeight = 0.82f / 1.5f;  // the sum's and the normalized sum's together
constexpr float kRecentWeight = 0.74f / 2.0f;
constexpr float kKeyNormWeight = 0.36f / 0.3f;
constexpr float kValueNormWeightOfKey = 0.71f / 0.3f, kValueNormWeightOfValue = 0.34f / 0.3f;
constexpr float kLogKeyToValue = 1.25f;  // ln 3.5

float Mean(const float* x, int count) {
  return std::accumulate(x, x + count, 0.0f) / static_cast<float>(count);
}

}  // namespace

void GenericLosses(const LeavingTokens& tokens, int first, int count,
                   const ImportanceFeatureBlock& block, float* key_losses, float* value_losses) {
  const auto row = [&](ImportanceFeature feature) {
    return block.features[static_cast<size_t>(feature)];
  };
  const float* attention = row(ImportanceFeature::kAttention);
  const float* recent = row(ImportanceFeature::kRecentAttention);
  const float* key_norm = row(ImportanceFeature::kKeyNorm);
  const float* value_norm = row(ImportanceFeature::kValueNorm);
  const float key_center = Mean(key_norm, count), value_center = Mean(value_norm, count);
  const float log_recent_queries = -std::log(1 - kRecentDecay);
  for (int i = 0; i < count; ++i) {
    const float share = std::log(EvenAttentionShare(tokens, tokens.first_position + first + i));
    const float attended = kAttentionWeight * (attention[i] - share) +
                           kRecentWeight * (recent[i] - share - log_recent_queries);
    const float key = key_norm[i] - key_center, value = value_norm[i] - value_center;
    // The importance is per unit of squared error, which grows with the square of the norm.
    key_losses[i] = std::exp(kLogKeyToValue + attended + kKeyNormWeight * key +
                             kValueNormWeightOfKey * value + 2 * key);
    value_losses[i] =
        std::exp(attended + kKeyNormWeight * key + kValueNormWeightOfValue * value + 2 * value);
  }
}

std::vector<PolicyFile::PricePoint> GenericPrices(int head_dim) {
  // Widths per element and the logarithm of the price of one, for logarithms of losses with a
  // standard deviation of 2.2 and a correlation of 0.9 between key and value.
  struct Point {
    float bits, log_price;
  };
  constexpr Point kPoints[] = {{7.37f, -7},    {6.52f, -5.5f}, {5.78f, -4.5f}, {5, -3.5f},
                               {4.27f, -2.5f}, {3.63f, -1.5f}, {3.09f, -0.5f}, {2.66f, 0.5f},
                               {2.35f, 1.5f},  {2.16f, 2.5f}};
  const float scale_bits = 16.0f / static_cast<float>(head_dim);  // two of 16 over 2 * head_dim
  const float elements = 2.0f * static_cast<float>(head_dim);
  std::vector<PolicyFile::PricePoint> prices;
  for (const Point& point : kPoints) {
    prices.push_back(
        {.bits = point.bits + scale_bits, .price = std::exp(point.log_price) / elements});
  }
  return prices;
}

}  // namespace whit
