// The price of a bit: what holds the mean precision at a target, and yields under pressure.
#ifndef WHIT_CONTROLLER_PRICE_H_
#define WHIT_CONTROLLER_PRICE_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "controller/policy_file.h"

namespace whit {

// Which price makes tokens get how many packed bits: ln(price) over bits, straight between points
// and beyond them.
class PriceCurve {
 public:
  // At least two points with prices above 0, bits falling and prices rising; any other are left
  // out. With fewer, those of GenericPrices.
  PriceCurve(absl::Span<const PolicyFile::PricePoint> points, int head_dim);

  double LogPrice(double bits) const;
  double Bits(double log_price) const;

  // Of the lowest and of the highest rung below FP16.
  double min_bits() const { return min_bits_; }
  double max_bits() const { return max_bits_; }

 private:
  struct Point {
    double bits = 0, log_price = 0;
  };
  double min_bits_, max_bits_;
  std::vector<Point> points_;  // bits falling
};

// The curve that `file` (null: none) has measured. Prices mean nothing without the importance that
// they were measured with.
PriceCurve PricesOf(const PolicyFile* file, int head_dim);

// A snapshot of the pool.
struct PoolLoad {
  size_t capacity_bytes = 0;
  size_t used_bytes = 0;
  size_t reserved_bytes = 0;
};

// By how much ln(price) rises: 0 while the pool has room to spare, up to kMaxPressure when it is
// full. What is reserved and not used yet counts a quarter: reservations are for the worst case.
inline constexpr double kMaxPressure = 4;
double PricePressure(const PoolLoad& load);

// What became of the tokens since the last update, and how things stand.
struct PriceMeasurement {
  double target_bits = 0;
  // The mean that is to meet the target, in its own measure, and over how many tokens.
  double held_bits = 0;
  double held_tokens = 0;
  // Packed bits of the tokens decided since the last update, and how many these are (a decision in
  // each layer and KV head makes a token). 0: none.
  double decided_bits = 0;
  double decided_tokens = 0;
  double pressure = 0;  // PricePressure
};

// Aims the next tokens at what brings the held mean to its target, and learns from what became of
// the last ones how far this text's prices lie from the curve.
class PriceController {
 public:
  PriceController(PriceCurve curve, double target_bits)
      : curve_(std::move(curve)), log_price_(curve_.LogPrice(target_bits)) {}

  // Whenever something was decided, and when the pressure has changed.
  void Update(const PriceMeasurement& measured);
  // In the units of LeavingTokens::price.
  double price() const;

 private:
  const PriceCurve curve_;
  double offset_ = 0;  // of ln(price) from the curve
  double log_price_;   // of the last update
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_PRICE_H_
