#include "runtime/ops/packed_matrix.h"

#include <algorithm>
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
  for (size_t g = 0; g < groups(); ++g, out += kGroupColumns) {
    const std::byte* base = group(row / kPanelRows, g);
    const size_t count = std::min(kGroupColumns, columns - g * kGroupColumns);
    if (!IsQuantized(format)) {
      for (size_t c = 0; c < count; ++c) out[c] = LoadFloat(format, base, c * kPanelRows + lane);
      continue;
    }
    const std::byte* scales = base + layout.codes;
    const auto scale = [&](size_t set) {
      return LoadScale(scales, set * kPanelRows + lane, layout.f32_scales);
    };
    const float first = scale(0), second = layout.scale_sets == 2 ? scale(1) : first;
    const float minimum = layout.minimums ? scale(layout.scale_sets) : 0.0f;
    const int zero = HasU4Codes(format) && !layout.minimums ? 8 : 0;
    for (size_t c = 0; c < count; ++c) {
      const auto code = static_cast<float>(LoadCode(format, base, lane, c) - zero);
      out[c] = (c < 16 ? first : second) * code + minimum;
    }
  }
}

}  // namespace whit
