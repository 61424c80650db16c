// ActiveCalls: the calls that are under way in the engine, so that a server that goes down can end
// them.
#ifndef WHIT_SERVER_ACTIVE_CALLS_H_
#define WHIT_SERVER_ACTIVE_CALLS_H_

#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace whit {

class EngineCall;

// Threads: any may call.
class ActiveCalls {
 public:
  void Add(EngineCall* call);
  void Remove(EngineCall* call);
  void CancelAll(const absl::Status& reason);
  // Those of the client that have one of these request ids; there may be none.
  void Cancel(std::string_view client, const absl::flat_hash_set<std::string>& request_ids,
              const absl::Status& reason);
  // Waits until the last one is gone, its status sent; false if `deadline` came first.
  bool WaitUntilNone(absl::Time deadline);

 private:
  absl::Mutex mutex_;
  absl::flat_hash_set<EngineCall*> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace whit

#endif  // WHIT_SERVER_ACTIVE_CALLS_H_
