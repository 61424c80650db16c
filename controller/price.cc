#include "controller/price.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "controller/generic_importance.h"
#include "controller/rung_choice.h"

namespace whit {
namespace {

// Tokens whose decisions weigh as much as all that was learned before them.
constexpr double kMemoryTokens = 64;
// Means so close to the lowest and the highest that can be reached say little of the price.
constexpr double kBlunt = 0.1;
// A deviation from the target is made up for over as many tokens as are held, divided by this; but
// not over fewer than kFewestTokens.
constexpr double kUrgency = 2;
constexpr double kFewestTokens = 128;

// Where pressure begins, as a share of the capacity.
constexpr double kCalmLoad = 0.75;
constexpr double kUnusedReservation = 0.25;

}  // namespace

PriceCurve::PriceCurve(absl::Span<const PolicyFile::PricePoint> points, int head_dim)
    : min_bits_(PackedBits(kQuantizedRungs.front(), head_dim)),
      max_bits_(PackedBits(kQuantizedRungs.back(), head_dim)) {
  for (const PolicyFile::PricePoint& point : points) {
    if (!(point.price > 0)) continue;
    const Point next = {.bits = point.bits, .log_price = std::log(double{point.price})};
    if (points_.empty() ||
        (next.bits < points_.back().bits && next.log_price > points_.back().log_price)) {
      points_.push_back(next);
    }
  }
  if (points_.size() >= 2) return;
  points_.clear();
  for (const PolicyFile::PricePoint& point : GenericPrices(head_dim)) {
    points_.push_back({.bits = point.bits, .log_price = std::log(double{point.price})});
  }
}

double PriceCurve::LogPrice(double bits) const {
  size_t i = 1;
  while (i + 1 < points_.size() && points_[i].bits > bits) ++i;
  const Point &a = points_[i - 1], &b = points_[i];
  return a.log_price + (b.log_price - a.log_price) * (bits - a.bits) / (b.bits - a.bits);
}

double PriceCurve::Bits(double log_price) const {
  size_t i = 1;
  while (i + 1 < points_.size() && points_[i].log_price < log_price) ++i;
  const Point &a = points_[i - 1], &b = points_[i];
  return a.bits + (b.bits - a.bits) * (log_price - a.log_price) / (b.log_price - a.log_price);
}

PriceCurve PricesOf(const PolicyFile* file, int head_dim) {
  if (file == nullptr || !file->importance.has_value()) return PriceCurve({}, head_dim);
  return PriceCurve(file->prices, head_dim);
}

double PricePressure(const PoolLoad& load) {
  if (load.capacity_bytes == 0) return 0;
  const auto used = static_cast<double>(load.used_bytes);
  const double unused = std::max(0.0, static_cast<double>(load.reserved_bytes) - used);
  const double share =
      (used + kUnusedReservation * unused) / static_cast<double>(load.capacity_bytes);
  return kMaxPressure * std::clamp((share - kCalmLoad) / (1 - kCalmLoad), 0.0, 1.0);
}

void PriceController::Update(const PriceMeasurement& measured) {
  if (measured.decided_tokens > 0) {
    // Compared in bits that can be reached: where all tokens get the lowest rung, a price that is
    // too high by whatever amount is as expected.
    const double low = curve_.min_bits() + kBlunt, high = curve_.max_bits() - kBlunt;
    const double expected = std::clamp(curve_.Bits(log_price_ - offset_), low, high);
    const double decided = std::clamp(measured.decided_bits, low, high);
    const double weight = measured.decided_tokens / (measured.decided_tokens + kMemoryTokens);
    offset_ += weight * (curve_.LogPrice(expected) - curve_.LogPrice(decided));
  }
  // Under pressure the mean lies below its target on purpose.
  const double missing = measured.target_bits - measured.held_bits;
  const double urgency =
      measured.pressure > 0
          ? 0
          : kUrgency * measured.held_tokens / (measured.held_tokens + kUrgency * kFewestTokens);
  const double aim =
      std::clamp(measured.target_bits + urgency * missing, curve_.min_bits(), curve_.max_bits());
  log_price_ = curve_.LogPrice(aim) + offset_ + measured.pressure;
}

double PriceController::price() const { return std::exp(log_price_); }

}  // namespace whit
