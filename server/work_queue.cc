#include "server/work_queue.h"

#include <pthread.h>

#include <utility>

namespace whit {

WorkQueue::WorkQueue(const char* name) : thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), name);
}

WorkQueue::~WorkQueue() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void WorkQueue::Post(Work work) {
  absl::MutexLock lock(&mutex_);
  pending_.push_back(std::move(work));
}

bool WorkQueue::TryPost(Work work, size_t max_pending) {
  absl::MutexLock lock(&mutex_);
  if (pending_.size() >= max_pending) return false;
  pending_.push_back(std::move(work));
  return true;
}

void WorkQueue::Run() {
  const auto has_work_or_stops = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return !pending_.empty() || stopping_;
  };
  while (true) {
    Work work;
    {
      absl::MutexLock lock(&mutex_, absl::Condition(&has_work_or_stops));
      if (pending_.empty()) return;
      work = std::move(pending_.front());
      pending_.pop_front();
    }
    work();
  }
}

}  // namespace whit
