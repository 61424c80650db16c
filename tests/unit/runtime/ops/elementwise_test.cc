#include "runtime/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

constexpr size_t kSizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 100, 576};

std::vector<float> Random(size_t n, float scale = 1) {
  std::mt19937 rng(n);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

TEST(RmsNormTest, MatchesTheFormula) {
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      const std::vector<float> x = Random(n, 3), w = Random(n + 1);
      std::vector<float> out(n);
      RmsNorm(x.data(), w.data(), 1e-5f, n, out.data());
      double squares = 0;
      for (float v : x) squares += double{v} * v;
      const double norm = std::sqrt(squares / static_cast<double>(n) + 1e-5);
      for (size_t i = 0; i < n; ++i) ASSERT_NEAR(out[i], x[i] * w[i] / norm, 1e-5) << n << " " << i;
    }
  });
}

TEST(SiluMultiplyTest, MatchesTheFormulaAndItsLimits) {
  constexpr size_t kRows = 3;
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      const size_t stride = n + 5;
      std::vector<float> gate = Random(kRows * stride, 4);
      const std::vector<float> up = Random(kRows * stride + 7);
      gate[0] = -1000;
      if (n > 1) gate[1] = 1000;
      std::vector<float> out = gate;
      SiluMultiply(out.data(), up.data(), kRows, n, stride);
      for (size_t i = 0; i < out.size(); ++i) {
        const double silu = gate[i] / (1 + std::exp(-double{gate[i]}));
        const double expected = i % stride < n ? silu * up[i] : gate[i];
        ASSERT_NEAR(out[i], expected, 1e-6 + 1e-6 * std::abs(expected)) << n << " " << i;
      }
    }
  });
}

TEST(RotatePairsTest, TurnsEachPairByItsAngleAndLeavesTheRest) {
  ForEachSimdTarget([] {
    for (size_t dims : {2, 4, 10, 16, 18, 64, 128}) {
      const std::vector<float> x = Random(dims + 3);
      std::vector<float> out = x, cosines(dims), sines(dims);
      for (size_t i = 0; i < dims; ++i) {
        const float angle = 0.3f * static_cast<float>(i / 2 + 1);
        cosines[i] = std::cos(angle);
        sines[i] = i % 2 == 0 ? -std::sin(angle) : std::sin(angle);
      }
      RotatePairs(out.data(), dims, cosines.data(), sines.data());
      for (size_t i = 0; i < dims; i += 2) {
        const double angle = 0.3 * static_cast<double>(i / 2 + 1);
        ASSERT_NEAR(out[i], x[i] * std::cos(angle) - x[i + 1] * std::sin(angle), 1e-5);
        ASSERT_NEAR(out[i + 1], x[i] * std::sin(angle) + x[i + 1] * std::cos(angle), 1e-5);
      }
      for (size_t i = dims; i < x.size(); ++i) ASSERT_EQ(out[i], x[i]);
    }
  });
}

}  // namespace
}  // namespace whit
