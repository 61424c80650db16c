#include "runtime/ops/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace whit {
namespace {

// About 50 microseconds: longer than the serial stretches inside a forward pass, shorter than
// anything an operator would see as idle load.
constexpr int kSpinsBeforeSleep = 2000;
// A caller that waits this long for the last chunk offers its core: the worker may be queued behind
// it.
constexpr int kSpinsBeforeYield = 2000;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The quota of the process's own cgroup, in cores; infinite if none is set.
double CgroupCpuQuota() {
  double quota = 0, period = 0;
  std::string word;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> word >> period) {
    if (word == "max" || period <= 0) return INFINITY;
    return std::strtod(word.c_str(), nullptr) / period;
  }
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (v1_quota >> quota && v1_period >> period && quota > 0 && period > 0) return quota / period;
  return INFINITY;
}

}  // namespace

int AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = CPU_COUNT(&set);
  const double quota = std::ceil(CgroupCpuQuota());
  if (quota < cpus) cpus = static_cast<int>(quota);
  return std::max(cpus, 1);
}

ThreadPool::ThreadPool(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerMain(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_.store(true);
    wake_.SignalAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(size_t n, size_t grain, LoopFn fn) {
  if (n == 0) return;
  grain = std::max<size_t>(grain, 1);
  size_t chunks = (n + grain - 1) / grain;
  if (chunks > 0xFFFF) {
    grain *= (chunks + 0xFFFE) / 0xFFFF;
    chunks = (n + grain - 1) / grain;
  }
  if (chunks == 1 || workers_.empty()) {
    for (size_t begin = 0; begin < n; begin += grain) fn(begin, std::min(n, begin + grain), 0);
    return;
  }
  fn_.store(&fn, std::memory_order_relaxed);
  n_.store(n, std::memory_order_relaxed);
  grain_.store(grain, std::memory_order_relaxed);
  chunks_done_.store(0, std::memory_order_relaxed);
  const uint32_t epoch = Ticket::Epoch(ticket_.load(std::memory_order_relaxed)) + 1;
  // Sequentially consistent, as is the sleeper's count: one of the two sides sees the other.
  ticket_.store(Ticket::Make(epoch, chunks));
  if (sleepers_.load() > 0) {
    absl::MutexLock lock(&mutex_);
    wake_.SignalAll();
  }
  RunChunks(/*thread=*/0);
  for (int spins = 0; chunks_done_.load(std::memory_order_acquire) != chunks; ++spins) {
    if (spins < kSpinsBeforeYield) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::RunChunks(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (Ticket::Next(ticket) < Ticket::Chunks(ticket)) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    const size_t grain = grain_.load(std::memory_order_relaxed);
    const size_t begin = Ticket::Next(ticket) * grain;
    (*fn_.load(std::memory_order_relaxed))(
        begin, std::min(n_.load(std::memory_order_relaxed), begin + grain), thread);
    chunks_done_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerMain(int thread) {
  uint32_t seen = 0;
  while (AwaitLoop(seen)) {
    seen = Ticket::Epoch(ticket_.load(std::memory_order_acquire));
    RunChunks(thread);
  }
}

bool ThreadPool::AwaitLoop(uint32_t seen) {
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    if (Ticket::Epoch(ticket_.load(std::memory_order_acquire)) != seen) return true;
    if (stopping_.load(std::memory_order_relaxed)) return false;
    Pause();
  }
  absl::MutexLock lock(&mutex_);
  sleepers_.fetch_add(1);
  while (Ticket::Epoch(ticket_.load()) == seen && !stopping_.load()) wake_.Wait(&mutex_);
  sleepers_.fetch_sub(1);
  return !stopping_.load();
}

}  // namespace whit
