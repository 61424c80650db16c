#include "runtime/ops/packed_matrix.h"

#include <cstring>

#include "runtime/ops/half.h"

namespace whit {
namespace {

// Element `index` of an array of 16- or 32-bit floats.
float LoadScale(const std::byte* base, size_t index, bool f32) {
  if (f32) {
    float value;
    std::memcpy(&value, base + 4 * index, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, base + 2 * index, sizeof(bits));
  return HalfToFloat(bits);
}

float LoadFloat(WeightFormat format, const std::byte* base, size_t index) {
  if (format != WeightFormat::kBF16) return LoadScale(base, index, format == WeightFormat::kF32);
  uint16_t bits;
  std::memcpy(&bits, base + 2 * index, sizeof(bits));
  return BFloat16ToFloat(bits);
}

int LoadCode(WeightFormat format, const std::byte* codes, size_t lane, size_t column) {
  if (!HasU4Codes(format)) {
    return static_cast<int8_t>(codes[(column / 4) * 64 + 4 * lane + column % 4]);
  }
  const auto pair = static_cast<uint8_t>(codes[(column % 16) / 4 * 64 + 4 * lane + column % 4]);
  return column < 16 ? pair & 0xF : pair >> 4;
}

}  // namespace

void PackedMatrix::UnpackRow(size_t row, float* out) const {
  const GroupLayout layout = GroupLayout::Of(format);
  const size_t lane = row % kPanelRows;
  for (size_t column = 0; column < columns; ++column) {
    const std::byte* g = group(row / kPanelRows, column / kGroupColumns);
    const size_t c = column % kGroupColumns;
    if (!IsQuantized(format)) {
      out[column] = LoadFloat(format, g, c * kPanelRows + lane);
      continue;
    }
    const std::byte* scales = g + layout.codes;
    const size_t set = layout.scale_sets == 2 ? c / 16 : 0;
    const float scale = LoadScale(scales, set * kPanelRows + lane, layout.f32_scales);
    const int code = LoadCode(format, g, lane, c);
    if (layout.minimums) {
      const float minimum =
          LoadScale(scales, layout.scale_sets * kPanelRows + lane, layout.f32_scales);
      out[column] = scale * static_cast<float>(code) + minimum;
    } else {
      out[column] = scale * static_cast<float>(HasU4Codes(format) ? code - 8 : code);
    }
  }
}

}  // namespace whit
