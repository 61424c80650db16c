#include "tests/bench/roof.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/ops/amx.h"
#include "runtime/ops/cpu_extension.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/roof.cc"
#define HWY_WANT_AVX3_DL 1
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#if HWY_ARCH_ARM_A64
#include "runtime/ops/neon_dot-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // Highway before 1.1 leaves VNNI out of this target
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Reads bytes [0, size), size a multiple of 1,024, and returns something that depends on all.
uint64_t Read(const uint8_t* data, size_t size) {
  const hn::ScalableTag<uint64_t> d;
  const size_t lanes = hn::Lanes(d) * sizeof(uint64_t);
  auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  const auto load = [&](size_t i) {
    return hn::Load(d, reinterpret_cast<const uint64_t*>(data + i));
  };
  for (size_t i = 0; i < size; i += 4 * lanes) {
    sum0 = hn::Xor(sum0, load(i));
    sum1 = hn::Xor(sum1, load(i + lanes));
    sum2 = hn::Xor(sum2, load(i + 2 * lanes));
    sum3 = hn::Xor(sum3, load(i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
}

// Independent accumulators, enough to hide the latency of a dot instruction on two ports.
constexpr size_t kChains = 12;

#if HWY_TARGET == HWY_AVX3_DL
template <CpuExtension>
HWY_INLINE size_t OpsPerDot() {
  return 64 * 2;
}
using Accumulator = __m512i;
template <CpuExtension>
HWY_INLINE Accumulator Dot(Accumulator sum, Accumulator a, Accumulator b) {
  return _mm512_dpbusd_epi32(sum, a, b);
}
HWY_INLINE Accumulator Fill(int8_t x) { return _mm512_set1_epi8(x); }
HWY_INLINE uint64_t Fold(Accumulator sum) { return _mm512_reduce_add_epi32(sum); }
#elif HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
template <CpuExtension>
HWY_INLINE size_t OpsPerDot() {
  return 32 * 2;
}
using Accumulator = __m256i;
template <CpuExtension>
HWY_INLINE Accumulator Dot(Accumulator sum, Accumulator a, Accumulator b) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
}
HWY_INLINE Accumulator Fill(int8_t x) { return _mm256_set1_epi8(x); }
HWY_INLINE uint64_t Fold(Accumulator sum) { return _mm_cvtsi128_si64(_mm256_castsi256_si128(sum)); }
#elif HWY_ARCH_ARM_A64
template <CpuExtension kExtension>
HWY_INLINE size_t OpsPerDot() {
  return (kExtension == CpuExtension::kDotProduct ? 16 : 8) * 2;
}
using Accumulator = int8x16_t;
template <CpuExtension kExtension>
HWY_INLINE Accumulator Dot(Accumulator sum, Accumulator a, Accumulator b) {
  if constexpr (kExtension == CpuExtension::kDotProduct) {
    return vreinterpretq_s8_s32(neon::SignedDot<kExtension>(vreinterpretq_s32_s8(sum), a, b));
  } else {
    return vreinterpretq_s8_s16(
        vmlal_s8(vreinterpretq_s16_s8(sum), vget_low_s8(a), vget_low_s8(b)));
  }
}
HWY_INLINE Accumulator Fill(int8_t x) { return vdupq_n_s8(x); }
HWY_INLINE uint64_t Fold(Accumulator sum) { return vaddlvq_u8(vreinterpretq_u8_s8(sum)); }
#else
// Pairs of int16, which every target multiplies and adds.
using D16 = hn::ScalableTag<int16_t>;
using D32 = hn::RepartitionToWide<D16>;
template <CpuExtension>
HWY_INLINE size_t OpsPerDot() {
  return hn::Lanes(D16()) * 2;
}
using Accumulator = hn::Vec<D32>;
template <CpuExtension>
HWY_INLINE Accumulator Dot(Accumulator sum, Accumulator a, Accumulator b) {
  Accumulator odd = hn::Zero(D32());
  return hn::ReorderWidenMulAccumulate(D32(), hn::BitCast(D16(), a), hn::BitCast(D16(), b), sum,
                                       odd);
}
HWY_INLINE Accumulator Fill(int8_t x) { return hn::BitCast(D32(), hn::Set(D16(), x)); }
HWY_INLINE uint64_t Fold(Accumulator sum) {
  return static_cast<uint64_t>(hn::GetLane(hn::SumOfLanes(D32(), sum)));
}
#endif

// Runs `rounds` * kChains dot instructions and says how many multiplications and additions they
// were. The operands come from `seed`, so that nothing is known when this is compiled.
template <CpuExtension kExtension>
size_t DotChainsWith(size_t rounds, int8_t seed, uint64_t* folded) {
  Accumulator sums[kChains];
  for (Accumulator& sum : sums) sum = Fill(seed);
  const Accumulator a = Fill(seed), b = Fill(static_cast<int8_t>(seed ^ 0x55));
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < kChains; ++i) sums[i] = Dot<kExtension>(sums[i], a, b);
  }
  for (const Accumulator& sum : sums) *folded += Fold(sum);
  return rounds * kChains * OpsPerDot<kExtension>();
}

size_t DotChains(size_t rounds, int8_t seed, uint64_t* folded) {
#if HWY_ARCH_ARM_A64
  if (DetectCpuExtension() == CpuExtension::kDotProduct) {
    return DotChainsWith<CpuExtension::kDotProduct>(rounds, seed, folded);
  }
#endif
  return DotChainsWith<CpuExtension::kNone>(rounds, seed, folded);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {
namespace {

HWY_EXPORT(Read);
HWY_EXPORT(DotChains);
HWY_EXPORT(TargetName);

constexpr int kTries = 5;
constexpr size_t kReadGrain = size_t{256} << 10;

std::atomic<uint64_t> sink{0};  // keeps results, and so the loops that made them, alive

template <typename Fn>
double BestSeconds(Fn fn) {
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < kTries; ++i) {
    const absl::Time start = absl::Now();
    fn();
    best = std::min(best, absl::Now() - start);
  }
  return absl::ToDoubleSeconds(best);
}

// `run` multiplies for some time and says how many multiplications and additions that were.
template <typename Fn>
double OpsPerSecond(ThreadPool& threads, Fn run) {
  constexpr size_t kChunks = 64;
  std::atomic<size_t> operations;
  const double seconds = BestSeconds([&] {
    operations = 0;
    threads.ParallelFor(kChunks, 1, [&](size_t begin, size_t end, int thread) {
      uint64_t folded = 0;
      for (size_t i = begin; i < end; ++i) operations += run(thread, &folded);
      sink += folded;
    });
  });
  return static_cast<double>(operations) / seconds;
}

size_t RoundUp(size_t bytes) { return (bytes + kReadGrain - 1) / kReadGrain * kReadGrain; }

}  // namespace

ReadStream::ReadStream(size_t max_bytes, ThreadPool& threads)
    : max_bytes_(RoundUp(max_bytes)),
      threads_(threads),
      data_(hwy::AllocateAligned<uint8_t>(max_bytes_)) {
  // As the weights and the page pool are: a hint, and no harm if it is refused.
  constexpr size_t kHugePage = size_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data_.get()) / kHugePage * kHugePage + kHugePage;
  const auto end = reinterpret_cast<uintptr_t>(data_.get() + max_bytes_);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  // Written, or the pages would all be the kernel's one page of zeros.
  threads_.ParallelFor(max_bytes_, kReadGrain, [&](size_t begin, size_t end, int) {
    std::fill(data_.get() + begin, data_.get() + end, uint8_t{1});
  });
}

double ReadStream::BytesPerSecond(size_t bytes) {
  bytes = std::min(RoundUp(bytes), max_bytes_);
  const double seconds = BestSeconds([&] {
    threads_.ParallelFor(bytes, kReadGrain, [&](size_t begin, size_t end, int) {
      sink += HWY_DYNAMIC_DISPATCH(Read)(data_.get() + begin, end - begin);
    });
  });
  return static_cast<double>(bytes) / seconds;
}

double Int8OpsPerSecond(ThreadPool& threads) {
  constexpr size_t kRounds = 200'000;
  return OpsPerSecond(threads, [](int thread, uint64_t* folded) {
    return HWY_DYNAMIC_DISPATCH(DotChains)(kRounds, static_cast<int8_t>(thread + 1), folded);
  });
}

double BFloat16OpsPerSecond(ThreadPool& threads) {
  if (DetectCpuExtension() != CpuExtension::kAmx) return 0;
#if HWY_ARCH_X86_64
  return OpsPerSecond(threads, [](int, uint64_t*) {
    constexpr size_t kRounds = 50'000, kProducts = 4;
    const amx::Tiles tiles;
    for (size_t round = 0; round < kRounds; ++round) {
      amx::MultiplyTiles<0, 4, 6>();
      amx::MultiplyTiles<1, 4, 7>();
      amx::MultiplyTiles<2, 5, 6>();
      amx::MultiplyTiles<3, 5, 7>();
    }
    return kRounds * kProducts * amx::kTileRows * amx::kTileRows * amx::kTileColumns * 2;
  });
#else
  return 0;
#endif
}

std::string SimdTargetName() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

size_t LastLevelCacheBytes() {
  for (int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    if (const long bytes = sysconf(level); bytes > 0) return static_cast<size_t>(bytes);
  }
  return 0;
}

}  // namespace whit
#endif  // HWY_ONCE
