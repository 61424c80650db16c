// Random operands of matrix products.
#ifndef WHIT_TESTS_UNIT_RUNTIME_OPS_RANDOM_OPERANDS_H_
#define WHIT_TESTS_UNIT_RUNTIME_OPS_RANDOM_OPERANDS_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "runtime/ops/activations.h"
#include "runtime/ops/packed_matrix.h"

namespace whit {

inline constexpr WeightFormat kWeightFormats[] = {
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
    std::vector<ActivationFormat> formats;
    for (size_t row = 0; row < rows; ++row) formats.push_back(Format(row));
    activations.Reset(formats, columns);
    activations.SetFloats(floats.data(), columns);
    for (size_t row = 0; row < rows; ++row) {
      activations.SetRow(row, floats.data() + row * columns);
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

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_RUNTIME_OPS_RANDOM_OPERANDS_H_
