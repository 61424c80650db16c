// What this machine can do at best with the threads at hand: the roof that a figure is held
// against.
#ifndef WHIT_TESTS_BENCH_ROOF_H_
#define WHIT_TESTS_BENCH_ROOF_H_

#include <cstddef>
#include <string>

#include "hwy/aligned_allocator.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// Memory that all threads read front to back together, as a forward pass reads weights and KV
// pages.
class ReadStream {
 public:
  // `threads` outlives it.
  ReadStream(size_t max_bytes, ThreadPool& threads);

  size_t max_bytes() const { return max_bytes_; }
  // Bytes per second over the first `bytes` (at most max_bytes), read over and over: at a size that
  // a cache holds this is the cache's rate, beyond it that of the DRAM. The best of several passes.
  double BytesPerSecond(size_t bytes);

 private:
  const size_t max_bytes_;
  ThreadPool& threads_;
  hwy::AlignedFreeUniquePtr<uint8_t[]> data_;
};

// Multiplications and additions per second of the widest int8 dot instruction that the kernels use,
// operands in registers. The best of several tries.
double Int8OpsPerSecond(ThreadPool& threads);
// The same of tiles of bfloat16, with which prompts are multiplied where the CPU has them; 0 if it
// has none.
double BFloat16OpsPerSecond(ThreadPool& threads);
// The SIMD target that Int8OpsPerSecond runs on, such as "AVX3_DL" (AVX-512 with VNNI).
std::string SimdTargetName();

// 0 if unknown.
size_t LastLevelCacheBytes();

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_ROOF_H_
