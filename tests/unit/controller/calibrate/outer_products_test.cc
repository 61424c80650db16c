#include "controller/calibrate/outer_products.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

TEST(MultiplyOuterTest, MatchesTheSums) {
  ForEachSimdTarget([] {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (size_t depth : {1, 3, 64}) {
      for (size_t rows : {8, 24}) {
        for (size_t cols : {16, 48, 80}) {
          const size_t a_stride = rows + 3, b_stride = cols + 5, c_stride = cols + 1;
          std::vector<float> a(depth * a_stride), b(depth * b_stride), c(rows * c_stride, 7);
          for (float& x : a) x = normal(rng);
          for (float& x : b) x = normal(rng);
          MultiplyOuter(a.data(), a_stride, b.data(), b_stride, depth, rows, cols, c.data(),
                        c_stride);
          for (size_t i = 0; i < rows; ++i) {
            for (size_t j = 0; j < cols; ++j) {
              double sum = 0;
              for (size_t p = 0; p < depth; ++p) sum += a[p * a_stride + i] * b[p * b_stride + j];
              ASSERT_NEAR(c[i * c_stride + j], sum, 1e-4) << depth << " " << i << " " << j;
            }
            ASSERT_EQ(c[i * c_stride + cols], 7);  // nothing is written behind a row
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace whit
