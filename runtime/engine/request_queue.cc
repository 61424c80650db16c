#include "runtime/engine/request_queue.h"

#include <utility>

namespace whit {

AdmissionDemand DemandOf(const QueuedRequest& queued) {
  return {.bytes = queued.reservation_bytes,
          .prompt_tokens = static_cast<int64_t>(queued.request.prompt.size())};
}

absl::Status RequestQueue::TakeTicket() {
  absl::MutexLock lock(&mutex_);
  absl::Status status = CheckTicket(limits_, state_);
  if (status.ok()) ++state_.tickets;
  return status;
}

void RequestQueue::ReturnTicket() {
  absl::MutexLock lock(&mutex_);
  --state_.tickets;
}

absl::StatusOr<uint64_t> RequestQueue::Submit(QueuedRequest request,
                                              const RunningProgress& progress) {
  absl::MutexLock lock(&mutex_);
  const AdmissionDemand demand = DemandOf(request);
  const absl::StatusOr<Admission> admission =
      DecideAdmission(limits_, state_, demand, ShareOf(request.request));
  if (!admission.ok()) return admission.status();
  if (*admission == Admission::kWait) {
    const absl::Status in_time =
        CheckDeadline(state_, progress, request.request.deadline - request.submitted);
    if (!in_time.ok()) return in_time;
  }
  --state_.tickets;
  ++uncompleted_;
  const uint64_t number = request.number = ++last_number_;
  switch (*admission) {
    case Admission::kRun:
      CountOvertaken(waiting_.size());
      Start(std::move(request));
      break;
    case Admission::kWait:
      ++state_.waiting;
      state_.waiting_prompt_tokens += demand.prompt_tokens;
      waiting_.push_back(std::move(request));
      break;
  }
  state_.may_overtake = MayOvertake(Line());
  return number;
}

void RequestQueue::Cancel(uint64_t number) {
  absl::MutexLock lock(&mutex_);
  if (state_.running > 0) cancellations_.insert(number);  // otherwise nothing is left to cancel
}

void RequestQueue::StartDraining() {
  absl::MutexLock lock(&mutex_);
  state_.draining = true;
}

bool RequestQueue::WaitUntilIdle(absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(this, &RequestQueue::IsIdle), deadline);
}

void RequestQueue::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
}

AdmissionState RequestQueue::state() const {
  absl::MutexLock lock(&mutex_);
  return state_;
}

bool RequestQueue::AwaitWork() const {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &RequestQueue::HasWork));
  return !stopped_;
}

RequestQueue::Intake RequestQueue::Take(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Intake intake;
  intake.stopped = stopped_;
  intake.cancellations = std::exchange(cancellations_, {});
  for (size_t i = 0; i < waiting_.size();) {
    if (stopped_ || intake.cancellations.contains(waiting_[i].number)) {
      intake.cancelled.push_back(TakeFromWaiting(i));
    } else if (waiting_[i].request.deadline <= now) {
      intake.expired.push_back(TakeFromWaiting(i));
    } else {
      ++i;
    }
  }
  StartWaiting();  // the one that held up the others may have gone
  intake.started = std::exchange(started_, {});
  return intake;
}

void RequestQueue::Release(size_t reservation_bytes) {
  absl::MutexLock lock(&mutex_);
  state_.reserved_bytes -= reservation_bytes;
  --state_.running;
  StartWaiting();
}

void RequestQueue::Completed() {
  absl::MutexLock lock(&mutex_);
  --uncompleted_;
}

void RequestQueue::Start(QueuedRequest request) {
  state_.reserved_bytes += request.reservation_bytes;
  ++state_.running;
  started_.push_back(std::move(request));
}

void RequestQueue::StartWaiting() {
  for (int next; (next = NextToStart(limits_, state_, Line())) >= 0;) {
    CountOvertaken(next);
    Start(TakeFromWaiting(next));
  }
  state_.may_overtake = MayOvertake(Line());
}

ClientShare RequestQueue::ShareOf(const Request& request) const {
  ClientShare share;
  if (request.client.empty()) return share;
  share.max_waiting_prompt_tokens = request.client_max_waiting_prompt_tokens;
  for (const QueuedRequest& one : waiting_) {
    if (one.request.client != request.client) continue;
    share.waiting_prompt_tokens += static_cast<int64_t>(one.request.prompt.size());
  }
  return share;
}

std::vector<WaitingView> RequestQueue::Line() const {
  std::vector<WaitingView> line;
  for (size_t i = 0; i < waiting_.size() && i < kLookAhead; ++i) {
    line.push_back({.demand = DemandOf(waiting_[i]), .overtaken = waiting_[i].overtaken});
  }
  return line;
}

void RequestQueue::CountOvertaken(size_t first) {
  for (size_t i = 0; i < first; ++i) ++waiting_[i].overtaken;
}

QueuedRequest RequestQueue::TakeFromWaiting(size_t index) {
  QueuedRequest request = std::move(waiting_[index]);
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
  --state_.waiting;
  state_.waiting_prompt_tokens -= static_cast<int64_t>(request.request.prompt.size());
  return request;
}

}  // namespace whit
