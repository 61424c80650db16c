// LogLimiter: for lines that others can cause at will, so that they do not fill the disk.
#ifndef WHIT_SERVER_LOG_LIMITER_H_
#define WHIT_SERVER_LOG_LIMITER_H_

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace whit {

inline constexpr int64_t kLimitedLinesPerSecond = 10;

// Threads: any may call.
class LogLimiter {
 public:
  // Nothing if the line is one too many in its second; otherwise how many were left out since the
  // last one that was not.
  std::optional<int64_t> Admit(absl::Time now);

 private:
  absl::Mutex mutex_;
  absl::Time second_began_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int64_t lines_ ABSL_GUARDED_BY(mutex_) = 0;  // in that second
  int64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace whit

#endif  // WHIT_SERVER_LOG_LIMITER_H_
