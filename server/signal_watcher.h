// SignalWatcher: signals as calls on an ordinary thread.
#ifndef WHIT_SERVER_SIGNAL_WATCHER_H_
#define WHIT_SERVER_SIGNAL_WATCHER_H_

#include <atomic>
#include <functional>
#include <initializer_list>
#include <thread>

namespace whit {

// Made before any other thread is, so that all of them leave the signals to this one's.
class SignalWatcher {
 public:
  // `on_signal` is called on the watcher's thread each time that one of `signals` comes.
  SignalWatcher(std::initializer_list<int> signals, std::function<void()> on_signal);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  const std::function<void()> on_signal_;
  const int wake_signal_;  // one of those watched
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace whit

#endif  // WHIT_SERVER_SIGNAL_WATCHER_H_
