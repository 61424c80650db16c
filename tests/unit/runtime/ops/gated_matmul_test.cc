#include "runtime/ops/gated_matmul.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "runtime/ops/elementwise.h"
#include "runtime/ops/matmul.h"
#include "tests/unit/runtime/ops/random_operands.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

// Both products, gated and rounded one after the other.
struct InSteps {
  InSteps(const RandomActivations& a, const RandomMatrix& gate, const RandomMatrix& up)
      : columns(gate.matrix.rows),
        floats(a.activations.rows() * 2 * columns),
        activations(a.activations.rows(), columns) {
    ThreadPool pool(1);
    const size_t stride = 2 * columns;
    MatMul(a.activations,
           {{.weights = &gate.matrix, .out = floats.data(), .stride = stride},
            {.weights = &up.matrix, .out = floats.data() + columns, .stride = stride}},
           pool);
    SiluMultiply(floats.data(), floats.data() + columns, a.activations.rows(), columns, stride);
    activations.Reset(a.activations.formats(), columns);
    for (size_t row = 0; row < activations.rows(); ++row) activations.SetRow(row, result(row));
  }
  const float* result(size_t row) const { return floats.data() + row * 2 * columns; }

  size_t columns;
  std::vector<float> floats;
  Activations activations;
};

void ExpectSameRow(const Activations& a, const Activations& b, size_t row) {
  for (size_t c = 0; c < a.groups() * kGroupColumns; ++c) {
    const size_t group = c / kGroupColumns, place = row * kGroupColumns + c % kGroupColumns;
    if (a.format(row) == ActivationFormat::kBFloat16) {
      ASSERT_EQ(a.bfloat16(row, c), b.bfloat16(row, c)) << row << " " << c;
      continue;
    }
    ASSERT_EQ(a.codes(group)[place], b.codes(group)[place]) << row << " " << c;
    if (a.format(row) == ActivationFormat::kInt16) {
      ASSERT_EQ(a.low_codes(group)[place], b.low_codes(group)[place]) << row << " " << c;
    }
    ASSERT_EQ(a.scales(group)[row], b.scales(group)[row]);
    ASSERT_EQ(a.sums(group)[row], b.sums(group)[row]);
  }
}

TEST(GatedMatMulTest, IsBothProductsGatedAndRoundedOnEveryTarget) {
  ThreadPool pool(3);
  ForEachSimdTarget([&] {
    std::mt19937 rng(3);
    for (WeightFormat format : {WeightFormat::kU4Min, WeightFormat::kS8, WeightFormat::kF16}) {
      for (size_t columns : {32, 48, 160, 416}) {
        // More than fit in a thread's memory at once, too.
        for (size_t rows : {1, 7, 60, 530}) {
          if (rows == 530 && columns != 48) continue;
          SCOPED_TRACE(testing::Message()
                       << "format " << static_cast<int>(format) << " " << rows << "x" << columns);
          const RandomMatrix gate(format, columns, 64, rng), up(format, columns, 64, rng);
          const RandomActivations a(rows, 64, rng);
          const InSteps expected(a, gate, up);
          Activations out(rows, columns);
          GatedMatMul(a.activations, gate.matrix, up.matrix, {.activations = &out}, pool);
          ASSERT_EQ(out.columns(), columns);
          for (size_t row = 0; row < rows; ++row) ExpectSameRow(out, expected.activations, row);
        }
      }
    }
  });
}

TEST(GatedMatMulTest, FloatWeightsReadItUnrounded) {
  ThreadPool pool(2);
  std::mt19937 rng(4);
  const RandomMatrix gate(WeightFormat::kF16, 100, 37, rng), up(WeightFormat::kF16, 100, 37, rng);
  const RandomActivations a(9, 37, rng);
  const InSteps expected(a, gate, up);
  Activations out(9, 100);
  std::vector<float> floats(9 * 104, -1.0f);
  GatedMatMul(a.activations, gate.matrix, up.matrix,
              {.activations = &out, .floats = floats.data(), .stride = 104}, pool);
  for (size_t row = 0; row < 9; ++row) {
    EXPECT_EQ(out.float_row(row), floats.data() + row * 104);
    for (size_t c = 0; c < 100; ++c) {
      ASSERT_EQ(floats[row * 104 + c], expected.result(row)[c]) << row << " " << c;
    }
    for (size_t c = 100; c < 104; ++c) ASSERT_EQ(floats[row * 104 + c], -1.0f);
  }
}

}  // namespace
}  // namespace whit
