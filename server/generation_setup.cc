#include "server/generation_setup.h"

#include <algorithm>
#include <chrono>
#include <string>

namespace whit {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture()
                                                                  : absl::FromChrono(deadline);
}

absl::Time EngineDeadline(absl::Time start, absl::Time deadline) {
  const absl::Duration time_allowed = std::max(deadline - start, absl::ZeroDuration());
  return deadline - std::min(time_allowed / 20, absl::Milliseconds(200));
}

bool DeadlinePassed(const grpc::CallbackServerContext& context, absl::Time start) {
  const absl::Time deadline = DeadlineOf(context);
  if (deadline == absl::InfiniteFuture()) return false;
  // The client gives up first: what it sends of its timeout is rounded up by as much as 1 %, and
  // then takes its time to get here.
  const absl::Duration tolerance = absl::Milliseconds(10) + (deadline - start) / 100;
  return absl::Now() + tolerance >= deadline;
}

grpc::Status Reject(const absl::Status& status, ServiceContext& context, CallLog& log,
                    grpc::CallbackServerContext& rpc) {
  // One whose client left while its prompt was tokenized was not turned away.
  if (absl::IsCancelled(status)) return log.Finish(status, "cancelled");
  context.metrics.CountRejection(RejectionReasonFor(status));
  const ServingModel* const model = context.model.load(std::memory_order_acquire);
  if (model != nullptr) context.load.OnRejected(model->engine(), status, rpc);
  return log.Refuse(status);
}

absl::Status FinalStatus(const Completion& completion, const absl::Status& cancel_reason) {
  if (completion.reason == FinishReason::kCancelled && !cancel_reason.ok()) return cancel_reason;
  return completion.status;
}

}  // namespace whit
