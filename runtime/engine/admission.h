// Admission: may a request run, must it wait, or is it refused? Pure functions over a snapshot.
//
// An admitted request has its bytes reserved for the whole of its life, and reservations together
// never exceed what the pool can hold: so whoever was admitted finishes.
#ifndef WHIT_RUNTIME_ENGINE_ADMISSION_H_
#define WHIT_RUNTIME_ENGINE_ADMISSION_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/precision_policy.h"
#include "runtime/model/model_config.h"

namespace whit {

// Bytes of pages that `tokens` tokens of one sequence take at most under `policy`. `ring` is how
// quantizing policies keep the newest and first tokens.
size_t ReservationBytes(const PrecisionPolicySpec& policy, const RecentRing& ring,
                        const ModelConfig& model, int64_t tokens);

// How many bytes of a pool of this capacity its pages can take: less than all where a page does not
// divide a slab.
size_t ReservableBytes(const ModelConfig& model, size_t capacity_bytes);

// The longest sequence that `bytes` can hold under `policy`, in tokens.
int64_t TokensThatFit(const PrecisionPolicySpec& policy, const RecentRing& ring,
                      const ModelConfig& model, size_t bytes);

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
  int tickets = 0;  // callers who were let in and have not submitted yet
  bool draining = false;
};

struct AdmissionDemand {
  size_t bytes = 0;
  int64_t prompt_tokens = 0;
};

// Whether one more caller may go on to submit, before anything is known of its request:
// RESOURCE_EXHAUSTED if neither a running place nor one in the queue is left, UNAVAILABLE when
// draining.
absl::Status CheckTicket(const AdmissionLimits& limits, const AdmissionState& state);

// Whether the running requests leave room for this one.
bool CanRun(const AdmissionLimits& limits, const AdmissionState& state,
            const AdmissionDemand& demand);

enum class Admission { kRun, kWait };

// First come, first served: nobody runs while another waits. INVALID_ARGUMENT if the request could
// not run even alone, RESOURCE_EXHAUSTED if it would have to wait and the queue is full in requests
// or in prompt tokens, UNAVAILABLE when draining.
absl::StatusOr<Admission> DecideAdmission(const AdmissionLimits& limits,
                                          const AdmissionState& state,
                                          const AdmissionDemand& demand);

// Why admission refused: "draining", "queue_full", "queue_prompt_tokens" or "too_large"; empty if
// `status` is something else.
std::string RejectionReason(const absl::Status& status);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_ADMISSION_H_
