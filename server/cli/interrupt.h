// Ctrl-C as a call on an ordinary thread.
#ifndef WHIT_SERVER_CLI_INTERRUPT_H_
#define WHIT_SERVER_CLI_INTERRUPT_H_

#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/signal_watcher.h"

namespace whit {

// Made once, before any other thread is.
class InterruptHandler {
 public:
  InterruptHandler();
  InterruptHandler(const InterruptHandler&) = delete;
  InterruptHandler& operator=(const InterruptHandler&) = delete;

  // From now on Ctrl-C calls `action` on the handler's thread; null: Ctrl-C ends the program with
  // status 130. Waits for an action under way.
  void Set(std::function<void()> action);

 private:
  absl::Mutex mutex_;
  std::function<void()> action_ ABSL_GUARDED_BY(mutex_);
  SignalWatcher watcher_;
};

// While it lives, Ctrl-C calls `action` instead of ending the program.
class ScopedInterrupt {
 public:
  ScopedInterrupt(InterruptHandler& handler, std::function<void()> action) : handler_(handler) {
    handler_.Set(std::move(action));
  }
  ~ScopedInterrupt() { handler_.Set(nullptr); }
  ScopedInterrupt(const ScopedInterrupt&) = delete;
  ScopedInterrupt& operator=(const ScopedInterrupt&) = delete;

 private:
  InterruptHandler& handler_;
};

}  // namespace whit

#endif  // WHIT_SERVER_CLI_INTERRUPT_H_
