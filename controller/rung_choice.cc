#include "controller/rung_choice.h"

#include <cstddef>
#include <limits>

namespace whit {
namespace {

size_t ErrorIndex(int bits) { return bits == 2 ? 0 : bits == 4 ? 1 : 2; }

}  // namespace

double TokenBits(Rung rung, int head_dim) {
  return 8.0 * static_cast<double>(PageBytes(rung, head_dim)) / kTileTokens;
}

double PackedBits(Rung rung, int head_dim) { return TokenBits(rung, head_dim) / (2.0 * head_dim); }

double Loss(Rung rung, double key_loss, double value_loss, const RungErrors& errors) {
  return key_loss * errors.key[ErrorIndex(KeyBits(rung))] +
         value_loss * errors.value[ErrorIndex(ValueBits(rung))];
}

Rung CheapestRung(double key_loss, double value_loss, const RungErrors& errors, double price,
                  int head_dim) {
  Rung best = Rung::kK2V2;
  double least = std::numeric_limits<double>::infinity();
  for (const Rung rung : kQuantizedRungs) {
    const double cost =
        Loss(rung, key_loss, value_loss, errors) + price * TokenBits(rung, head_dim);
    if (cost < least) {
      least = cost;
      best = rung;
    }
  }
  return best;
}

}  // namespace whit
