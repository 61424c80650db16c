// ThreadPool: the worker threads of one engine.
#ifndef WHIT_RUNTIME_OPS_THREAD_POOL_H_
#define WHIT_RUNTIME_OPS_THREAD_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace whit {

// Cores this process may use: the smaller of its affinity mask and its cgroup's CPU quota, at
// least 1.
int AvailableCpus();

// Runs loops on num_threads threads, the caller among them. Work is claimed in chunks, so a thread
// that loses its core delays only the chunk it holds. Between loops workers spin for some
// microseconds, then sleep: an idle pool uses no CPU.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);  // >= 1; the caller counts as one
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end, thread) for disjoint ranges that cover [0, n), and returns when all have
  // returned. Ranges begin at multiples of `grain` (or of a multiple of it, if there would be more
  // than 65,535). `thread` < num_threads() names the calling thread, for scratch memory. One loop
  // at a time, from one thread at a time; not reentrant.
  using LoopFn = absl::FunctionRef<void(size_t begin, size_t end, int thread)>;
  void ParallelFor(size_t n, size_t grain, LoopFn fn);

 private:
  // The loop under way: epoch (upper 32 bits), number of chunks, next chunk to claim (16 bits
  // each). Claiming compares and swaps the whole word, so a worker that slept through a loop cannot
  // take a chunk of the next one by mistake, and what describes the loop is stable once a claim
  // succeeded.
  struct Ticket {
    static uint64_t Make(uint32_t epoch, size_t chunks) {
      return (uint64_t{epoch} << 32) | (uint64_t{chunks} << 16);
    }
    static uint32_t Epoch(uint64_t t) { return static_cast<uint32_t>(t >> 32); }
    static size_t Chunks(uint64_t t) { return (t >> 16) & 0xFFFF; }
    static size_t Next(uint64_t t) { return t & 0xFFFF; }
  };

  void WorkerMain(int thread);
  void RunChunks(int thread);
  // Blocks until the epoch differs from `seen` or the pool stops; false if it stops.
  bool AwaitLoop(uint32_t seen);

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<size_t> chunks_done_{0};
  alignas(64) std::atomic<const LoopFn*> fn_{nullptr};
  std::atomic<size_t> n_{0};
  std::atomic<size_t> grain_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  absl::Mutex mutex_;
  absl::CondVar wake_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> workers_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_THREAD_POOL_H_
