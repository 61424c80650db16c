// What a rung costs a token, in bits and in loss, and the rung that costs least.
#ifndef WHIT_CONTROLLER_RUNG_CHOICE_H_
#define WHIT_CONTROLLER_RUNG_CHOICE_H_

#include <array>

#include "kvpool/rung.h"

namespace whit {

// All below FP16, lowest first.
inline constexpr std::array<Rung, kNumRungs - 1> kQuantizedRungs = {
    Rung::kK2V2, Rung::kK4V2, Rung::kK4V4, Rung::kK8V4, Rung::kK8V8};

// Squared error of keys and of values at 2, 4 and 8 bits, relative to the squared norm.
struct RungErrors {
  std::array<float, 3> key{}, value{};
};

// Bits of a token's codes and scales, of its key and its value in one (layer, KV head).
double TokenBits(Rung rung, int head_dim);
// The same per element of key and value: packed bits.
double PackedBits(Rung rung, int head_dim);

// A loss is importance times squared norm. What is lost at a rung below FP16:
double Loss(Rung rung, double key_loss, double value_loss, const RungErrors& errors);

// Minimises Loss + price * TokenBits over kQuantizedRungs; a tie goes to the lower rung.
Rung CheapestRung(double key_loss, double value_loss, const RungErrors& errors, double price,
                  int head_dim);

}  // namespace whit

#endif  // WHIT_CONTROLLER_RUNG_CHOICE_H_
