#include "runtime/ops/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "runtime/ops/half.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

constexpr WeightFormat kFormats[] = {
    WeightFormat::kU4,    WeightFormat::kU4Min,    WeightFormat::kU4MinF32,  WeightFormat::kS8,
    WeightFormat::kS8Min, WeightFormat::kS8MinF32, WeightFormat::kS8HalfF32, WeightFormat::kF16,
    WeightFormat::kBF16,  WeightFormat::kF32};

// A packed matrix of random codes and plausible scales, owning its bytes.
struct RandomMatrix {
  RandomMatrix(WeightFormat format, size_t rows, size_t columns, std::mt19937& rng) {
    matrix = {.format = format, .rows = rows, .columns = columns};
    bytes = hwy::AllocateAligned<std::byte>(matrix.bytes());
    matrix.data = bytes.get();
    const GroupLayout layout = GroupLayout::Of(format);
    for (size_t panel = 0; panel < matrix.panels(); ++panel) {
      for (size_t g = 0; g < matrix.groups(); ++g) FillGroup(matrix.group(panel, g), layout, rng);
    }
  }

  void FillGroup(std::byte* group, const GroupLayout& layout, std::mt19937& rng) {
    std::uniform_real_distribution<float> value(-1, 1);
    if (!IsQuantized(matrix.format)) {
      const size_t size = matrix.format == WeightFormat::kF32 ? 4 : 2;
      for (size_t i = 0; i < layout.codes / size; ++i) StoreFloat(group, i, value(rng), size);
      return;
    }
    // All 256 byte values, -128 among the signed ones.
    for (size_t i = 0; i < layout.codes; ++i) group[i] = static_cast<std::byte>(rng());
    const size_t count = (layout.scale_sets + (layout.minimums ? 1 : 0)) * kPanelRows;
    for (size_t i = 0; i < count; ++i) {
      StoreFloat(group + layout.codes, i, 0.05f * value(rng), layout.f32_scales ? 4 : 2);
    }
  }

  void StoreFloat(std::byte* base, size_t index, float value, size_t size) {
    if (std::abs(value) < 1e-3f) value = 0.0f;
    uint32_t bits = std::bit_cast<uint32_t>(value);
    if (size == 2 && value != 0.0f) {
      // Truncation to bfloat16, or to a binary16 of moderate exponent.
      bits = matrix.format == WeightFormat::kBF16
                 ? bits >> 16
                 : ((bits >> 16) & 0x8000) | ((((bits >> 23) & 0xFF) - 112) & 0x1F) << 10 |
                       ((bits >> 13) & 0x3FF);
    }
    std::memcpy(base + index * size, &bits, size);
  }

  PackedMatrix matrix;
  hwy::AlignedFreeUniquePtr<std::byte[]> bytes;
};

// Random rows of activations, some of them extreme.
struct RandomActivations {
  RandomActivations(size_t rows, size_t columns, std::mt19937& rng)
      : floats(rows * columns), activations(rows, columns) {
    std::normal_distribution<float> normal(0, 1);
    for (float& x : floats) x = normal(rng);
    for (size_t c = 0; c < columns && c < 8; ++c) floats[c] = c % 2 == 0 ? 1e4f : -1e4f;
    activations.Reset(rows, columns);
    activations.SetFloats(floats.data(), columns);
    for (size_t row = 0; row < rows; ++row) {
      activations.SetRow(row, floats.data() + row * columns, Format(row));
    }
  }
  // Rows of all formats that this machine can multiply, in runs of 3, 3 and 38.
  static ActivationFormat Format(size_t row) {
    const size_t place = row % 44;
    if (place < 3) return ActivationFormat::kInt8;
    return place < 6 ? ActivationFormat::kInt16 : PromptActivations();
  }
  std::vector<float> floats;
  Activations activations;
};

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
    for (WeightFormat format : kFormats) {
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
  for (WeightFormat format : kFormats) {
    const RandomMatrix w(format, 200, 160, rng);
    const RandomActivations batch(131, 160, rng);
    std::vector<float> together(131 * 200);
    MatMul(batch.activations, {{.weights = &w.matrix, .out = together.data(), .stride = 200}},
           four);
    for (size_t row : {0, 1, 64, 127, 128, 130}) {
      RandomActivations alone(1, 160, rng);
      alone.activations.SetFloats(batch.floats.data() + row * 160, 160);
      alone.activations.SetRow(0, batch.floats.data() + row * 160, RandomActivations::Format(row));
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

TEST(ActivationsTest, CodesAreTheNearestIntegersOnEveryTarget) {
  ForEachSimdTarget([] {
    std::vector<float> x(70);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 3.0f;
    Activations a(3, 70);
    a.Reset(3, 70);
    a.SetRow(0, x.data(), ActivationFormat::kInt8);
    a.SetRow(1, std::vector<float>(70, 0.0f).data(), ActivationFormat::kInt8);
    a.SetRow(2, x.data(), ActivationFormat::kInt16);
    for (size_t c = 0; c < 70; ++c) {
      const float* scales = a.scales(c / 32);
      const int8_t* codes = a.codes(c / 32) + c % 32;
      EXPECT_NEAR(scales[0] * codes[0], x[c], 0.5001f * scales[0]) << c;
      EXPECT_EQ(codes[32], 0);
      const int wide = 128 * codes[64] + a.low_codes(c / 32)[64 + c % 32];
      EXPECT_NEAR(scales[2] * wide, x[c], 0.5001f * scales[2]) << c;
      EXPECT_NEAR(scales[2], scales[0] / 128, 1e-6f * scales[0]);
    }
    EXPECT_EQ(a.scales(0)[1], 0.0f);
    float sum = 0;
    for (size_t c = 0; c < 32; ++c) sum += a.scales(2)[0] * a.codes(2)[c];  // 6 real columns
    EXPECT_NEAR(a.sums(2)[0], sum, 1e-4f);
  });
}

TEST(ActivationsTest, BFloat16IsTheNearestOnEveryTarget) {
  if (PromptActivations() != ActivationFormat::kBFloat16) {
    GTEST_SKIP() << "this CPU has no tiles of bfloat16 (AMX)";
  }
  ForEachSimdTarget([] {
    std::vector<float> x(70);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 3.0f;
    Activations a(2, 70);
    a.Reset(2, 70);
    a.SetRow(1, x.data(), ActivationFormat::kBFloat16);
    for (size_t c = 0; c < 70; ++c) {
      EXPECT_EQ(a.bfloat16(1, c), FloatToBFloat16(x[c]));
      EXPECT_NEAR(BFloat16ToFloat(a.bfloat16(1, c)), x[c], std::abs(x[c]) / 256) << c;
    }
    for (size_t c = 70; c < 96; ++c) EXPECT_EQ(a.bfloat16(1, c), 0);
  });
}

}  // namespace
}  // namespace whit
