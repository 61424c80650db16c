// WorkQueue: one thread that runs what is posted to it, in order.
#ifndef WHIT_SERVER_WORK_QUEUE_H_
#define WHIT_SERVER_WORK_QUEUE_H_

#include <cstddef>
#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace whit {

// Threads: any may post. The destructor runs what is left, then joins.
class WorkQueue {
 public:
  using Work = absl::AnyInvocable<void()>;

  // `name` is the thread's, for tools that list threads; at most 15 characters.
  explicit WorkQueue(const char* name);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  void Post(Work work);
  // False, and `work` is dropped, if max_pending others wait already.
  [[nodiscard]] bool TryPost(Work work, size_t max_pending);

 private:
  void Run();

  absl::Mutex mutex_;
  std::deque<Work> pending_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace whit

#endif  // WHIT_SERVER_WORK_QUEUE_H_
