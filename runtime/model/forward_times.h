// Where the time of a pass through the model goes.
#ifndef WHIT_RUNTIME_MODEL_FORWARD_TIMES_H_
#define WHIT_RUNTIME_MODEL_FORWARD_TIMES_H_

#include <chrono>

#include "absl/time/time.h"

namespace whit {

struct ForwardTimes {
  // Embedding, and multiplying by the layers' weights, with norms and the rounding of activations.
  absl::Duration matmul;
  absl::Duration attention;  // RoPE, appending to pages, and attending to them
  absl::Duration quantize;   // deciding the precision of what leaves the ring, and packing it
  absl::Duration logits;     // multiplying by the output matrix
};

// Shares out time: each lap goes to one of several sums. A lap costs tens of nanoseconds.
class LapTimer {
 public:
  void Start() { last_ = Clock::now(); }
  // The time since Start or the last lap goes to `sum`.
  void EndLap(absl::Duration& sum) {
    const Clock::time_point now = Clock::now();
    sum += absl::FromChrono(now - last_);
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_FORWARD_TIMES_H_
