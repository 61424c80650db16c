#include "runtime/ops/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/unit/runtime/ops/random_operands.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

// What the kernels may be off by: float rounding, relative to the sum of |x * w|.
double Tolerance(const RandomActivations& a, size_t row, const PackedMatrix& w, size_t weight_row) {
  std::vector<float> weights(w.columns);
  w.UnpackRow(weight_row, weights.data());
  double sum = 0, largest = 0;
  for (size_t c = 0; c < w.columns; ++c) {
    const double product = std::abs(double{weights[c]} * a.floats[row * w.columns + c]);
    sum += product;
    largest = std::max(largest, product);
  }
  // A minimum adds 8 or 16 times the weight's own size before it cancels.
  const double floats = 3e-6 * (1 + 16 * sum);
  // A weight in the middle of two numbers of bfloat16 is rounded to either.
  return a.activations.format(row) == ActivationFormat::kBFloat16 ? floats + largest / 256 : floats;
}

TEST(MatMulTest, MatchesReferenceForEveryFormatTargetAndShape) {
  ThreadPool pool(3);
  ForEachSimdTarget([&] {
    std::mt19937 rng(7);
    for (WeightFormat format : kWeightFormats) {
      for (size_t weight_rows : {1, 15, 16, 17, 100}) {
        for (size_t columns : {32, 96, 320, 37, 1600}) {
          if (IsQuantized(format) && columns % kGroupColumns != 0) continue;
          for (size_t rows : {1, 2, 5, 8, 130}) {
            if (rows == 130 && columns != 96) continue;
            if (columns == 1600 && (rows != 5 || weight_rows != 17)) continue;
            SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << " " << rows
                                            << "x" << columns << "x" << weight_rows);
            const RandomMatrix w(format, weight_rows, columns, rng);
            const RandomActivations a(rows, columns, rng);
            std::vector<float> out(rows * weight_rows, 123.0f);
            MatMul(a.activations,
                   {{.weights = &w.matrix, .out = out.data(), .stride = weight_rows}}, pool);
            for (size_t i = 0; i < rows; ++i) {
              for (size_t j = 0; j < weight_rows; ++j) {
                const double expected = MatMulReference(a.activations, i, w.matrix, j);
                ASSERT_NEAR(out[i * weight_rows + j], expected, Tolerance(a, i, w.matrix, j))
                    << i << " " << j;
              }
            }
          }
        }
      }
    }
  });
}

TEST(MatMulTest, ARowIsBitwiseTheSameInAnyBatchAndOnAnyNumberOfThreads) {
  std::mt19937 rng(11);
  ThreadPool one(1), four(4);
  for (WeightFormat format : kWeightFormats) {
    const RandomMatrix w(format, 200, 160, rng);
    const RandomActivations batch(131, 160, rng);
    std::vector<float> together(131 * 200);
    MatMul(batch.activations, {{.weights = &w.matrix, .out = together.data(), .stride = 200}},
           four);
    for (size_t row : {0, 1, 64, 127, 128, 130}) {
      RandomActivations alone(1, 160, rng);
      alone.activations.Reset({RandomActivations::Format(row)}, 160);
      alone.activations.SetFloats(batch.floats.data() + row * 160, 160);
      alone.activations.SetRow(0, batch.floats.data() + row * 160);
      std::vector<float> out(200);
      MatMul(alone.activations, {{.weights = &w.matrix, .out = out.data(), .stride = 200}}, one);
      EXPECT_EQ(std::memcmp(out.data(), together.data() + row * 200, 200 * sizeof(float)), 0)
          << static_cast<int>(format) << " row " << row;
    }
  }
}

TEST(MatMulTest, SeveralOutputsShareOneLoopAndMayAccumulate) {
  std::mt19937 rng(13);
  ThreadPool pool(2);
  const RandomMatrix w1(WeightFormat::kU4Min, 50, 64, rng), w2(WeightFormat::kS8, 7, 64, rng),
      w3(WeightFormat::kF16, 33, 64, rng);
  const RandomActivations a(3, 64, rng);
  std::vector<float> out(3 * 90, 1.0f);
  MatMul(a.activations,
         {{.weights = &w1.matrix, .out = out.data(), .stride = 90},
          {.weights = &w2.matrix, .out = out.data() + 50, .stride = 90, .accumulate = true},
          {.weights = &w3.matrix, .out = out.data() + 57, .stride = 90}},
         pool);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(out[i * 90 + 49], MatMulReference(a.activations, i, w1.matrix, 49), 0.5);
    EXPECT_NEAR(out[i * 90 + 50], 1 + MatMulReference(a.activations, i, w2.matrix, 0), 0.5);
    EXPECT_NEAR(out[i * 90 + 56], 1 + MatMulReference(a.activations, i, w2.matrix, 6), 0.5);
    EXPECT_NEAR(out[i * 90 + 57], MatMulReference(a.activations, i, w3.matrix, 0), 0.05);
    EXPECT_NEAR(out[i * 90 + 89], MatMulReference(a.activations, i, w3.matrix, 32), 0.05);
  }
}

}  // namespace
}  // namespace whit
