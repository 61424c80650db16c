#include "runtime/ops/logits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

constexpr size_t kSizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 511, 512, 513, 5000};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Random(size_t n) {
  std::mt19937 rng(static_cast<uint32_t>(n));
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

TEST(ArgMaxTest, FindsTheFirstLargestWhereverItStands) {
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      std::vector<float> x = Random(n);
      const size_t expected = std::max_element(x.begin(), x.end()) - x.begin();
      ASSERT_EQ(ArgMax(x.data(), n), expected) << n;
      for (size_t at = 0; at < n; at += 1 + n / 40) {
        std::vector<float> y = x;
        y[at] = 1000;
        y[n - 1] = 1000;
        ASSERT_EQ(ArgMax(y.data(), n), at) << n;
      }
    }
  });
}

TEST(ArgMaxTest, PassesOverNanAndInfinities) {
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      std::vector<float> x(n, kNan);
      EXPECT_EQ(ArgMax(x.data(), n), 0u);
      x.assign(n, -kInfinity);
      EXPECT_EQ(ArgMax(x.data(), n), 0u);
      x.assign(n, kNan);
      x[n / 2] = -5;
      EXPECT_EQ(ArgMax(x.data(), n), n / 2);
      x[n - 1] = kInfinity;
      EXPECT_EQ(ArgMax(x.data(), n), n - 1);
    }
  });
}

TEST(ExpWeightsTest, MatchesTheFormula) {
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      for (float scale : {0.01f, 1.0f, 2.5f}) {
        const std::vector<float> x = Random(n);
        const size_t max = ArgMax(x.data(), n);
        std::vector<float> out(n + 1, -7);
        const double sum = ExpWeights(x.data(), n, max, scale, out.data());
        double expected_sum = 0;
        for (size_t i = 0; i < n; ++i) {
          const double exponent = (double{x[i]} - x[max]) * scale;
          const double expected = std::exp(exponent);
          // The exponent is rounded to a float before it is raised.
          ASSERT_NEAR(out[i], expected, (1e-6 - 2e-7 * exponent) * expected + 1e-37)
              << n << " " << i;
          expected_sum += expected;
        }
        EXPECT_NEAR(sum, expected_sum, 4e-6 * expected_sum);
        EXPECT_EQ(out[max], 1.0f);
        EXPECT_EQ(out[n], -7) << "wrote past the end";
      }
    }
  });
}

TEST(ExpWeightsTest, StaysFiniteForAnyInput) {
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      std::vector<float> x = Random(n), out(n);
      if (n > 4) {
        x[0] = kNan;
        x[1] = -kInfinity;
        x[2] = kInfinity;
        x[3] = kInfinity;
        // 1/temperature overflows for the smallest temperatures.
        EXPECT_EQ(ExpWeights(x.data(), n, ArgMax(x.data(), n), kInfinity, out.data()), 2.0);
        EXPECT_EQ(out[0], 0);
        EXPECT_EQ(out[1], 0);
        EXPECT_EQ(out[2], 1);
        EXPECT_EQ(out[3], 1);
      }
      x.assign(n, kNan);
      EXPECT_EQ(ExpWeights(x.data(), n, 0, 1, out.data()), static_cast<double>(n));
    }
  });
}

TEST(LogSumExpTest, MatchesTheFormulaFarFromZeroToo) {
  ForEachSimdTarget([] {
    for (size_t n : kSizes) {
      std::vector<float> x = Random(n);
      double sum = 0;
      for (float v : x) sum += std::exp(double{v});
      EXPECT_NEAR(LogSumExp(x.data(), n, ArgMax(x.data(), n)), std::log(sum), 1e-5);
      for (float& v : x) v += 1024;
      EXPECT_NEAR(LogSumExp(x.data(), n, ArgMax(x.data(), n)), 1024 + std::log(sum), 1e-3);
    }
  });
}

}  // namespace
}  // namespace whit
