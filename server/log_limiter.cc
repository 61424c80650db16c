#include "server/log_limiter.h"

#include <utility>

namespace whit {

std::optional<int64_t> LogLimiter::Admit(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  // A clock that was set back begins a new second.
  if (now < second_began_ || now >= second_began_ + absl::Seconds(1)) {
    second_began_ = now;
    lines_ = 0;
  }
  if (++lines_ <= kLimitedLinesPerSecond) return std::exchange(left_out_, 0);
  ++left_out_;
  return std::nullopt;
}

}  // namespace whit
