#include "runtime/ops/cpu_extension.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>

#include "runtime/ops/amx.h"
#include "runtime/ops/half.h"

namespace whit {
namespace {

// Whether this CPU runs Arm's dot-product instruction, found out by running it.
bool RunsDotProduct() {
#if defined(__aarch64__)
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGILL, [](int) { _exit(1); });
    asm volatile(".inst 0x4e809400" ::: "v0");  // sdot v0.4s, v0.16b, v0.16b
    _exit(0);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status == 0;
#else
  return false;
#endif
}

TEST(CpuExtensionTest, IsWhatTheCpuRuns) {
  EXPECT_EQ(DetectCpuExtension() == CpuExtension::kDotProduct, RunsDotProduct());
}

#if defined(__x86_64__)

// Products of small integers, all exact.
TEST(AmxTest, TilesMultiply) {
  if (DetectCpuExtension() != CpuExtension::kAmx) GTEST_SKIP() << "this CPU has no AMX";
  const auto a = [](size_t row, size_t column) { return static_cast<float>(row + column % 5); };
  const auto b = [](size_t column, size_t output) {
    return static_cast<float>(column % 7) - static_cast<float>(output);
  };
  alignas(64) uint16_t rows[amx::kTileRows][amx::kTileColumns];
  alignas(64) uint16_t outputs[amx::kTileRows][16][2];
  alignas(64) float sums[amx::kTileRows][16];
  for (size_t i = 0; i < amx::kTileRows; ++i) {
    for (size_t c = 0; c < amx::kTileColumns; ++c) {
      rows[i][c] = FloatToBFloat16(a(i, c));
      outputs[c / 2][i][c % 2] = FloatToBFloat16(b(c, i));
    }
  }
  {
    const amx::Tiles tiles;
    { const amx::Tiles others; }  // which leaves these as they were
    amx::ZeroTile<7>();
    amx::LoadTile<0>(rows, amx::kTileRowBytes);
    amx::LoadTile<1>(outputs, amx::kTileRowBytes);
    for (int times = 0; times < 2; ++times) amx::MultiplyTiles<7, 0, 1>();
    amx::StoreTile<7>(sums, amx::kTileRowBytes);
  }
  for (size_t i = 0; i < amx::kTileRows; ++i) {
    for (size_t output = 0; output < 16; ++output) {
      float expected = 0;
      for (size_t c = 0; c < amx::kTileColumns; ++c) expected += 2 * a(i, c) * b(c, output);
      EXPECT_EQ(sums[i][output], expected) << i << " " << output;
    }
  }
}

#endif

}  // namespace
}  // namespace whit
