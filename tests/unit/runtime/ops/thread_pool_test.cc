#include "runtime/ops/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <numeric>
#include <thread>
#include <vector>

namespace whit {
namespace {

TEST(ThreadPoolTest, EveryIndexRunsExactlyOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (size_t n : {0, 1, 2, 7, 64, 1000, 200000}) {
      for (size_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> runs(n);
        pool.ParallelFor(n, grain, [&](size_t begin, size_t end, int thread) {
          ASSERT_LT(thread, threads);
          ASSERT_LT(begin, end);
          for (size_t i = begin; i < end; ++i) runs[i].fetch_add(1);
        });
        for (size_t i = 0; i < n; ++i) ASSERT_EQ(runs[i].load(), 1) << i;
      }
    }
  }
}

TEST(ThreadPoolTest, ManyShortLoopsSeeEachOthersWrites) {
  ThreadPool pool(4);
  std::vector<int> values(64, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.ParallelFor(values.size(), 1 + round % 7, [&](size_t begin, size_t end, int) {
      // Each loop reads what another thread may have written in the loop before.
      for (size_t i = begin; i < end; ++i) values[i] += 1;
    });
  }
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), 0), 64 * 20000);
}

TEST(ThreadPoolTest, WorkersWakeAfterSleeping) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than the workers spin
    std::atomic<int> sum{0};
    pool.ParallelFor(30, 1, [&](size_t begin, size_t, int) { sum += static_cast<int>(begin); });
    EXPECT_EQ(sum.load(), 435);
  }
}

TEST(ThreadPoolTest, AnIdlePoolUsesNoCpu) {
  ThreadPool pool(4);
  pool.ParallelFor(8, 1, [](size_t, size_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t before = std::clock();  // CPU time of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.01);
}

TEST(AvailableCpusTest, IsPositive) { EXPECT_GE(AvailableCpus(), 1); }

}  // namespace
}  // namespace whit
