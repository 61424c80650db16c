#include "server/signal_watcher.h"

#include <pthread.h>

#include <csignal>
#include <utility>

namespace whit {

SignalWatcher::SignalWatcher(std::initializer_list<int> signals, std::function<void()> on_signal)
    : on_signal_(std::move(on_signal)), wake_signal_(*signals.begin()) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this, set] {
    int signal = 0;
    while (sigwait(&set, &signal) == 0 && !stopping_.load()) on_signal_();
  });
}

SignalWatcher::~SignalWatcher() {
  stopping_.store(true);
  pthread_kill(thread_.native_handle(), wake_signal_);
  thread_.join();
}

}  // namespace whit
