// TokenRate: tokens per second, over the last seconds.
#ifndef WHIT_RUNTIME_ENGINE_TOKEN_RATE_H_
#define WHIT_RUNTIME_ENGINE_TOKEN_RATE_H_

#include <algorithm>
#include <cmath>

#include "absl/time/time.h"

namespace whit {

// A mean that forgets exponentially, so that it falls to 0 when nothing is made any more.
class TokenRate {
 public:
  void Add(int tokens, absl::Time now) {
    decayed_tokens_ = Decayed(now) + tokens;
    updated_ = now;
  }
  double PerSecond(absl::Time now) const { return Decayed(now) / kMemorySeconds; }

 private:
  static constexpr double kMemorySeconds = 3;

  double Decayed(absl::Time now) const {
    const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - updated_));
    return decayed_tokens_ * std::exp(-seconds / kMemorySeconds);
  }

  double decayed_tokens_ = 0;
  absl::Time updated_ = absl::InfinitePast();
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_TOKEN_RATE_H_
