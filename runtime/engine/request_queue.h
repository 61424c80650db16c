// RequestQueue: where the callers' threads and the engine thread meet.
#ifndef WHIT_RUNTIME_ENGINE_REQUEST_QUEUE_H_
#define WHIT_RUNTIME_ENGINE_REQUEST_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "controller/precision_policy.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/kv_reservation.h"
#include "runtime/engine/request.h"
#include "runtime/engine/retry_estimate.h"
#include "runtime/engine/token_sink.h"

namespace whit {

// A request on its way to the engine thread.
struct QueuedRequest {
  uint64_t number = 0;  // given by the queue
  Request request{};
  std::shared_ptr<const PrecisionPolicy> policy{};  // request.kv_policy's
  std::shared_ptr<TokenSink> sink{};
  KvTerms terms{};
  size_t reservation_bytes = 0;
  absl::Time submitted{};
  int overtaken = 0;  // WaitingView's; counted by the queue
};

AdmissionDemand DemandOf(const QueuedRequest& queued);

// Admits requests, holds those that wait, and keeps the books: what is reserved and who is in. A
// request that may run is reserved for when it is submitted, not at the next step, so that the
// books are always exact; hence nobody waits while nobody runs.
//
// Threads: any may call, but for what is marked as the engine thread's.
class RequestQueue {
 public:
  explicit RequestQueue(const AdmissionLimits& limits) : limits_(limits) {}

  // Lets one caller in; errors as CheckTicket. Each success is followed by one call of ReturnTicket
  // or one success of Submit.
  absl::Status TakeTicket();
  void ReturnTicket();
  // Takes over the request, and the ticket. Returns the request's number. Errors as
  // DecideAdmission and, if it would have to wait, CheckDeadline; then the ticket is still the
  // caller's.
  absl::StatusOr<uint64_t> Submit(QueuedRequest request, const RunningProgress& progress = {});
  // Has the engine end a request. Unknown numbers are ignored.
  void Cancel(uint64_t number);

  void StartDraining();
  // Waits until every request submitted has had its completion; false if `deadline` came first.
  bool WaitUntilIdle(absl::Time deadline) const;
  // Cancels everything, and ends AwaitWork for good.
  void Stop();

  AdmissionState state() const;

  // The rest is for the engine thread.

  // Sleeps until a request runs. False once stopped.
  bool AwaitWork() const;

  struct Intake {
    std::vector<QueuedRequest> started;  // their bytes are reserved
    // Ended while they waited.
    std::vector<QueuedRequest> cancelled;
    std::vector<QueuedRequest> expired;
    // What else is to be cancelled, of what runs or was started.
    absl::flat_hash_set<uint64_t> cancellations;
    bool stopped = false;  // everything is
  };
  // What has come since the last call.
  Intake Take(absl::Time now);

  // A running request's pages are back in the pool: lets in who waits.
  void Release(size_t reservation_bytes);
  // A request, started or not, has its completion.
  void Completed();

 private:
  void Start(QueuedRequest request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  QueuedRequest TakeFromWaiting(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of the client that `request` is of.
  ClientShare ShareOf(const Request& request) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Those first in line.
  std::vector<WaitingView> Line() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // They let one pass.
  void CountOvertaken(size_t first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopped_ || state_.running > 0; }
  bool IsIdle() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return uncompleted_ == 0; }

  const AdmissionLimits limits_;

  mutable absl::Mutex mutex_;
  AdmissionState state_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_number_ ABSL_GUARDED_BY(mutex_) = 0;
  int uncompleted_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<QueuedRequest> waiting_ ABSL_GUARDED_BY(mutex_);
  std::vector<QueuedRequest> started_ ABSL_GUARDED_BY(mutex_);  // not taken yet
  absl::flat_hash_set<uint64_t> cancellations_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_REQUEST_QUEUE_H_
