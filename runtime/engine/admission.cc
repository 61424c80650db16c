#include "runtime/engine/admission.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "kvpool/page_pool.h"
#include "kvpool/rung.h"
#include "runtime/model/model.h"

namespace whit {
namespace {

constexpr char kReasonPayload[] = "whit/rejection-reason";

absl::Status Rejection(absl::StatusCode code, std::string_view reason, const std::string& message) {
  absl::Status status(code, message);
  status.SetPayload(kReasonPayload, absl::Cord(absl::string_view(reason.data(), reason.size())));
  return status;
}

absl::Status Draining() {
  return Rejection(absl::StatusCode::kUnavailable, "draining",
                   "the server is draining; it takes no new requests");
}

// What one (layer, KV head) takes at most. Tokens leave the ring when a block of the prompt is
// complete, so up to a block more than the ring is meant to hold waits in it.
size_t ListBytes(const PrecisionPolicySpec& policy, const RecentRing& quantizing, int head_dim,
                 int64_t tokens) {
  const int64_t pages = (tokens + kTileTokens - 1) / kTileTokens;
  if (policy.kind == PrecisionPolicySpec::Kind::kFp16) {
    return pages * PageBytes(Rung::kFp16, head_dim);
  }
  const RecentRing ring = RingOf(policy, quantizing);
  const std::vector<Rung> rungs = PossibleRungs(policy);
  const size_t dearest = PageBytes(rungs.back(), head_dim);
  const size_t ring_page = PageBytes(ring.rung, head_dim);
  const int ring_tokens =
      ring.tokens_at(static_cast<int>(std::min<int64_t>(tokens, std::numeric_limits<int>::max())));
  const int64_t in_ring =
      std::min<int64_t>(pages - 1, (ring_tokens + Model::kPrefillBlock) / kTileTokens + 2);
  // Each rung has a part-filled page; a page that leaves is held until its tokens are written.
  const int64_t settled = pages - 1 - in_ring + static_cast<int64_t>(rungs.size());
  return PageBytes(ring.sink_rung, head_dim) + in_ring * std::max(ring_page, dearest) +
         settled * dearest;
}

}  // namespace

size_t ReservationBytes(const PrecisionPolicySpec& policy, const RecentRing& ring,
                        const ModelConfig& model, int64_t tokens) {
  return size_t{1} * model.num_layers * model.num_kv_heads *
         ListBytes(policy, ring, model.head_dim, tokens);
}

size_t ReservableBytes(const ModelConfig& model, size_t capacity_bytes) {
  const size_t page_bytes = PageBytes(Rung::kFp16, model.head_dim);
  const size_t slabs = capacity_bytes / PagePool::kSlabBytes;
  return slabs * (PagePool::kSlabBytes / page_bytes) * page_bytes;
}

int64_t TokensThatFit(const PrecisionPolicySpec& policy, const RecentRing& ring,
                      const ModelConfig& model, size_t bytes) {
  // By whole pages: the most that a list can have is all of its bytes at the lowest rung.
  const size_t lists = size_t{1} * model.num_layers * model.num_kv_heads;
  int64_t fits = 0;
  int64_t too_many =
      static_cast<int64_t>(bytes / lists / PageBytes(Rung::kK2V2, model.head_dim)) + 1;
  while (fits + 1 < too_many) {
    const int64_t pages = fits + (too_many - fits) / 2;
    const bool fit = ReservationBytes(policy, ring, model, pages * kTileTokens) <= bytes;
    (fit ? fits : too_many) = pages;
  }
  return fits * kTileTokens;
}

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
                                          const AdmissionDemand& demand) {
  if (demand.bytes > limits.reservable_bytes) {
    return Rejection(absl::StatusCode::kInvalidArgument, "too_large",
                     absl::StrFormat("the request needs %d bytes of KV cache for its prompt and "
                                     "max_new_tokens; the whole cache holds %d",
                                     demand.bytes, limits.reservable_bytes));
  }
  if (state.draining) return Draining();
  if (state.waiting == 0 && CanRun(limits, state, demand)) return Admission::kRun;
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
  return Admission::kWait;
}

std::string RejectionReason(const absl::Status& status) {
  const absl::optional<absl::Cord> reason = status.GetPayload(kReasonPayload);
  return reason.has_value() ? std::string(*reason) : "";
}

}  // namespace whit
