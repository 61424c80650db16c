#include "server/cli/interrupt.h"

#include <csignal>
#include <cstdlib>
#include <utility>

#include "server/cli/connection.h"

namespace whit {

InterruptHandler::InterruptHandler()
    : watcher_({SIGINT}, [this] {
        absl::MutexLock lock(&mutex_);
        if (action_ == nullptr) std::_Exit(kExitInterrupted);
        action_();
      }) {}

void InterruptHandler::Set(std::function<void()> action) {
  absl::MutexLock lock(&mutex_);
  action_ = std::move(action);
}

}  // namespace whit
