#include "runtime/engine/retry_estimate.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"
#include "runtime/engine/admission.h"

namespace whit {
namespace {

constexpr char kRetryAfterPayload[] = "whit/retry-after";

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t StartsUntilRoom(const AdmissionLimits& limits, const AdmissionState& state,
                        const AdmissionDemand& demand) {
  const int64_t requests = state.waiting + state.tickets + 1 - limits.max_waiting_requests;
  const int64_t excess_tokens =
      state.waiting_prompt_tokens + demand.prompt_tokens - limits.max_waiting_prompt_tokens;
  int64_t starts = std::max<int64_t>(requests, 1);
  if (excess_tokens > state.waiting_prompt_tokens) {
    starts = state.waiting + 1;  // it cannot wait at all: it must find a free place
  } else if (excess_tokens > 0) {
    starts = std::max(starts, DivideUp(excess_tokens * state.waiting, state.waiting_prompt_tokens));
  }
  return starts;
}

absl::Duration EstimateWait(int64_t starts, RunningProgress progress) {
  std::vector<int64_t>& left = progress.tokens_left;
  if (left.empty() || !(progress.tokens_per_second > 0)) return absl::ZeroDuration();
  std::sort(left.begin(), left.end());
  // After a full turn all places have new requests in them, taken to be like the longest.
  const auto places = static_cast<int64_t>(left.size());
  const int64_t turns = (starts - 1) / places, last = (starts - 1) % places;
  const double tokens = static_cast<double>(turns) * static_cast<double>(left.back()) +
                        static_cast<double>(left[last]);
  const double pace = progress.tokens_per_second / static_cast<double>(places);
  return absl::Seconds(tokens / pace);
}

absl::Duration EstimateRetryAfter(int64_t starts, RunningProgress progress) {
  if (progress.tokens_left.empty() || !(progress.tokens_per_second > 0)) return kDefaultRetryAfter;
  return std::clamp(EstimateWait(starts, std::move(progress)), kMinRetryAfter, kMaxRetryAfter);
}

void SetRetryAfter(absl::Duration retry_after, absl::Status* status) {
  status->SetPayload(kRetryAfterPayload, absl::Cord(absl::FormatDuration(retry_after)));
}

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterPayload);
  absl::Duration retry_after;
  if (!payload.has_value() || !absl::ParseDuration(std::string(*payload), &retry_after)) {
    return std::nullopt;
  }
  return retry_after;
}

}  // namespace whit
