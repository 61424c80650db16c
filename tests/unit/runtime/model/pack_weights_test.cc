#include "runtime/model/pack_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "runtime/model/dequantize.h"

namespace whit {
namespace {

constexpr TensorType kTypes[] = {TensorType::kF32,  TensorType::kF16,  TensorType::kBF16,
                                 TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ5_0,
                                 TensorType::kQ5_1, TensorType::kQ8_0, TensorType::kQ4_K,
                                 TensorType::kQ5_K, TensorType::kQ6_K};

// Random bytes are valid blocks of every type; some of their scales are infinite or NaN.
TEST(PackWeightsTest, UnpackedRowsEqualTheDecodedFile) {
  std::mt19937 rng(5);
  for (TensorType type : kTypes) {
    for (size_t rows : {1, 16, 35}) {
      const size_t cols = 512;
      const size_t row_bytes = cols / TensorBlockElements(type) * TensorBlockBytes(type);
      std::vector<std::byte> file(rows * row_bytes);
      for (std::byte& b : file) b = static_cast<std::byte>(rng());
      const GgufTensor tensor = {.name = "t",
                                 .type = type,
                                 .cols = cols,
                                 .rows = rows,
                                 .data = file.data(),
                                 .bytes = file.size()};
      PackedMatrix packed = DescribePacked(tensor);
      const auto memory = hwy::AllocateAligned<std::byte>(packed.bytes());
      std::fill_n(memory.get(), packed.bytes(), std::byte{0});
      packed.data = memory.get();
      PackPanels(tensor, packed, 0, packed.panels());
      std::vector<float> expected(cols), actual(cols);
      for (size_t row = 0; row < rows; ++row) {
        DequantizeRow(type, tensor.data + row * row_bytes, cols, expected.data());
        packed.UnpackRow(row, actual.data());
        for (size_t c = 0; c < cols; ++c) {
          if (std::isnan(expected[c])) {
            ASSERT_TRUE(std::isnan(actual[c])) << TensorTypeName(type) << " " << row << " " << c;
          } else {
            // The file's formula d * (q - 8) or d * q + m, in either order of rounding.
            ASSERT_FLOAT_EQ(actual[c], expected[c])
                << TensorTypeName(type) << " " << row << " " << c;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace whit
