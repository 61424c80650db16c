// ThreadPool: the worker threads of one engine.
#ifndef WHIT_RUNTIME_OPS_THREAD_POOL_H_
#define WHIT_RUNTIME_OPS_THREAD_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace whit {

// Cores this process may use: the smaller of its affinity mask and its cgroup's CPU quota, at least 1.
int AvailableCpus();

// Runs loops on num_threads threads, the caller among them. Work is claimed in chunks, so a thread that
// loses its core delays only the chunk it holds. Between loops workers spin for some microseconds, then
// sleep: an idle pool uses no CPU.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // >= 1; the caller counts as one
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end, thread) for disjoint ranges that cover [0, n), each at most `grain` long, and
  // returns when all have returned. `thread` < num_threads() names the calling thread, for scratch
  // memory. One loop at a time, always from the same owner thread; not reentrant.
  using LoopFn = absl::FunctionRef<void(size_t begin, size_t end, int thread)>;
  void ParallelFor(size_t n, size_t grain, LoopFn fn);

 private:
  std::vector<std::thread> workers_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_THREAD_POOL_H_
