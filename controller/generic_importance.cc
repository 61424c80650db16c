#include "controller/generic_importance.h"

#include <algorithm>
#include <cmath>

namespace whit {
namespace {

// Slopes of ln(importance * squared norm), fitted for all layers and heads of a model at once.
constexpr float kPersistenceSlope = 1.5f, kAttentionSlope = 0.1f, kValueSlope = 0.5f;
constexpr float kKeySlopeOfKey = 1.1f, kKeySlopeOfValue = 0.1f;
// Recent attention below this, relative to the average, is as good as none; a logarithm.
constexpr float kFaded = -2;
// Sizes of elements, logarithms of their root mean squares, at which an error in a key costs
// exp(kLogKeyToValue) times as much as one in a value that is as large relative to it.
constexpr float kLogKeySize = 0.75f, kLogValueSize = -0.35f, kLogKeyToValue = 2.3f;

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
  const float log_recent_queries = -std::log(1 - kRecentDecay);
  const float log_root_dim = 0.5f * std::log(static_cast<float>(tokens.head_dim));
  for (int i = 0; i < count; ++i) {
    const float share = std::log(EvenAttentionShare(tokens, tokens.first_position + first + i));
    const float persistence = recent[i] - log_recent_queries - attention[i] - kFaded;
    const float key = key_norm[i] - log_root_dim - kLogKeySize;
    const float value = value_norm[i] - log_root_dim - kLogValueSize;
    const float common = kPersistenceSlope * std::max(persistence, 0.0f) +
                         kAttentionSlope * (attention[i] - share) + kValueSlope * value;
    key_losses[i] = std::exp(kLogKeyToValue + common + kKeySlopeOfKey * key);
    value_losses[i] = std::exp(common + kKeySlopeOfValue * key);
  }
}

std::vector<PolicyFile::PricePoint> GenericPrices(int head_dim) {
  // Widths per element and the logarithm of the price of one, for losses as they were spread over
  // the tokens, layers and heads of the model that the slopes were fitted to.
  struct Point {
    float bits, log_price;
  };
  constexpr Point kPoints[] = {{7.66f, -5.5f}, {6.94f, -5}, {6.44f, -4},   {5.59f, -3},
                               {4.86f, -2.5f}, {4.53f, -2}, {3.6f, -1},    {3.22f, 0},
                               {2.98f, 0.5f},  {2.54f, 1},  {2.34f, 1.5f}, {2.22f, 2},
                               {2.07f, 3}};
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
