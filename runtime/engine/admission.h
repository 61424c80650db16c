// Admission: may a request run, must it wait, or is it refused? Pure functions over a snapshot.
//
// An admitted request has its bytes reserved for the whole of its life, for the case that its
// tokens are squeezed to its floor (kv_reservation), and reservations together never exceed what
// the pool can hold: so whoever was admitted finishes (kv_relief). What is held above the floors is
// elastic: more bytes may be used than are reserved.
#ifndef WHIT_RUNTIME_ENGINE_ADMISSION_H_
#define WHIT_RUNTIME_ENGINE_ADMISSION_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/engine/retry_estimate.h"

namespace whit {

struct AdmissionLimits {
  size_t reservable_bytes = 0;
  int max_running_requests = 0;
  int max_waiting_requests = 0;
  int64_t max_waiting_prompt_tokens = 0;
};

struct AdmissionState {
  size_t reserved_bytes = 0;  // by the running requests
  int running = 0;
  int waiting = 0;
  int64_t waiting_prompt_tokens = 0;
  // Those of the waiting ones who are first in line have been overtaken less than they may be.
  bool may_overtake = true;
  int tickets = 0;  // callers who were let in and have not submitted yet
  bool draining = false;
};

struct AdmissionDemand {
  size_t bytes = 0;
  int64_t prompt_tokens = 0;
};

// What the client that a request is of may have waiting, and has.
struct ClientShare {
  int64_t max_waiting_prompt_tokens = std::numeric_limits<int64_t>::max();
  int64_t waiting_prompt_tokens = 0;
};

// Whether one more caller may go on to submit, before anything is known of its request:
// RESOURCE_EXHAUSTED if neither a running place nor one in the queue is left, UNAVAILABLE when
// draining.
absl::Status CheckTicket(const AdmissionLimits& limits, const AdmissionState& state);

// Whether the running requests leave room for this one.
bool CanRun(const AdmissionLimits& limits, const AdmissionState& state,
            const AdmissionDemand& demand);

enum class Admission { kRun, kWait };

// First come, first served, but a request that fits may overtake those that do not yet (below).
// INVALID_ARGUMENT if the request could not run even alone, RESOURCE_EXHAUSTED if it would have to
// wait and the queue, or its client's share of it, is full in requests or in prompt tokens,
// UNAVAILABLE when draining.
absl::StatusOr<Admission> DecideAdmission(const AdmissionLimits& limits,
                                          const AdmissionState& state,
                                          const AdmissionDemand& demand,
                                          const ClientShare& share = {});

// Looking ahead: how many of those first in line are looked at for one that fits, and how often
// each of them lets another pass. So one whose turn it is waits for those who run when its turn
// comes and for at most so many others, however many small ones come behind it.
inline constexpr int kLookAhead = 16;
inline constexpr int kMaxOvertaken = 8;

struct WaitingView {
  AdmissionDemand demand;
  int overtaken = 0;  // others that were behind it and started
};
// Which of those who wait, in order of arrival, starts next; -1: none can.
int NextToStart(const AdmissionLimits& limits, const AdmissionState& state,
                absl::Span<const WaitingView> waiting);
// Whether one more, behind all of them, could start before them if it fits.
bool MayOvertake(absl::Span<const WaitingView> waiting);

// RESOURCE_EXHAUSTED if a request that would have to wait would most likely still wait when its
// deadline comes. Those who run may end early, so twice the time left counts.
absl::Status CheckDeadline(const AdmissionState& state, const RunningProgress& progress,
                           absl::Duration time_left);

// A status that says in one word why a request was turned away.
absl::Status Rejection(absl::StatusCode code, std::string_view reason, const std::string& message);
// That word; here it is "draining", "queue_full", "queue_prompt_tokens",
// "client_queue_prompt_tokens", "deadline" or "too_large". Empty if `status` has none.
std::string RejectionReason(const absl::Status& status);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_ADMISSION_H_
