#include "runtime/engine/admission.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"

namespace whit {
namespace {

constexpr char kReasonPayload[] = "whit/rejection-reason";

absl::Status Draining() {
  return Rejection(absl::StatusCode::kUnavailable, "draining",
                   "the server is draining; it takes no new requests");
}

}  // namespace

absl::Status CheckTicket(const AdmissionLimits& limits, const AdmissionState& state) {
  if (state.draining) return Draining();
  // While somebody waits, no running place is free: it would have been taken.
  const int running_places = state.waiting > 0 ? 0 : limits.max_running_requests - state.running;
  if (state.tickets + state.waiting >= running_places + limits.max_waiting_requests) {
    return Rejection(
        absl::StatusCode::kResourceExhausted, "queue_full",
        absl::StrFormat("%d requests run and %d wait; at most %d may wait", state.running,
                        state.waiting + state.tickets, limits.max_waiting_requests));
  }
  return absl::OkStatus();
}

bool CanRun(const AdmissionLimits& limits, const AdmissionState& state,
            const AdmissionDemand& demand) {
  return state.running < limits.max_running_requests &&
         demand.bytes <= limits.reservable_bytes - state.reserved_bytes;
}

absl::StatusOr<Admission> DecideAdmission(const AdmissionLimits& limits,
                                          const AdmissionState& state,
                                          const AdmissionDemand& demand, const ClientShare& share) {
  if (demand.bytes > limits.reservable_bytes) {
    return Rejection(absl::StatusCode::kInvalidArgument, "too_large",
                     absl::StrFormat("the request needs %d bytes of KV cache for its prompt and "
                                     "max_new_tokens, at its floor; the whole cache holds %d",
                                     demand.bytes, limits.reservable_bytes));
  }
  if (state.draining) return Draining();
  if (state.may_overtake && CanRun(limits, state, demand)) return Admission::kRun;
  if (state.waiting >= limits.max_waiting_requests) {
    return Rejection(absl::StatusCode::kResourceExhausted, "queue_full",
                     absl::StrFormat("%d requests wait; at most %d may", state.waiting,
                                     limits.max_waiting_requests));
  }
  if (demand.prompt_tokens > limits.max_waiting_prompt_tokens - state.waiting_prompt_tokens) {
    return Rejection(
        absl::StatusCode::kResourceExhausted, "queue_prompt_tokens",
        absl::StrFormat("%d prompt tokens wait and this request has %d; at most %d may wait",
                        state.waiting_prompt_tokens, demand.prompt_tokens,
                        limits.max_waiting_prompt_tokens));
  }
  if (demand.prompt_tokens > share.max_waiting_prompt_tokens - share.waiting_prompt_tokens) {
    return Rejection(
        absl::StatusCode::kResourceExhausted, "client_queue_prompt_tokens",
        absl::StrFormat("%d prompt tokens of this client wait and this request has %d; at most %d "
                        "of this client may wait",
                        share.waiting_prompt_tokens, demand.prompt_tokens,
                        share.max_waiting_prompt_tokens));
  }
  return Admission::kWait;
}

int NextToStart(const AdmissionLimits& limits, const AdmissionState& state,
                absl::Span<const WaitingView> waiting) {
  for (size_t i = 0; i < waiting.size() && i < kLookAhead; ++i) {
    if (CanRun(limits, state, waiting[i].demand)) return static_cast<int>(i);
    if (waiting[i].overtaken >= kMaxOvertaken) break;
  }
  return -1;
}

bool MayOvertake(absl::Span<const WaitingView> waiting) {
  return waiting.size() < kLookAhead &&
         std::all_of(waiting.begin(), waiting.end(),
                     [](const WaitingView& view) { return view.overtaken < kMaxOvertaken; });
}

absl::Status CheckDeadline(const AdmissionState& state, const RunningProgress& progress,
                           absl::Duration time_left) {
  const absl::Duration wait = EstimateWait(state.waiting + 1, progress);
  if (wait <= 2 * time_left) return absl::OkStatus();
  return Rejection(
      absl::StatusCode::kResourceExhausted, "deadline",
      absl::StrFormat("%d requests wait and this one's turn would come in about %s; "
                      "its deadline is in %s",
                      state.waiting, absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(1))),
                      absl::FormatDuration(absl::Trunc(time_left, absl::Milliseconds(1)))));
}

absl::Status Rejection(absl::StatusCode code, std::string_view reason, const std::string& message) {
  absl::Status status(code, message);
  status.SetPayload(kReasonPayload, absl::Cord(absl::string_view(reason.data(), reason.size())));
  return status;
}

std::string RejectionReason(const absl::Status& status) {
  const absl::optional<absl::Cord> reason = status.GetPayload(kReasonPayload);
  return reason.has_value() ? std::string(*reason) : "";
}

}  // namespace whit
