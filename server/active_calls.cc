#include "server/active_calls.h"

#include "server/engine_call.h"

namespace whit {

void ActiveCalls::Add(EngineCall* call) {
  absl::MutexLock lock(&mutex_);
  calls_.insert(call);
}

void ActiveCalls::Remove(EngineCall* call) {
  absl::MutexLock lock(&mutex_);
  calls_.erase(call);
}

void ActiveCalls::CancelAll(const absl::Status& reason) {
  // A call's destructor waits in Remove while this runs, so every call here is alive.
  absl::MutexLock lock(&mutex_);
  for (EngineCall* call : calls_) call->Cancel(reason);
}

void ActiveCalls::Cancel(std::string_view client,
                         const absl::flat_hash_set<std::string>& request_ids,
                         const absl::Status& reason) {
  absl::MutexLock lock(&mutex_);
  for (EngineCall* call : calls_) {
    if (call->client() == client && request_ids.contains(call->request_id())) call->Cancel(reason);
  }
}

bool ActiveCalls::WaitUntilNone(absl::Time deadline) {
  const auto none = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return calls_.empty(); };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(&none), deadline);
}

}  // namespace whit
