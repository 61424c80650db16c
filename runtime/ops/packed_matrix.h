// PackedMatrix: a weight matrix in the layout the matmul kernels read.
//
// Rows (outputs) are grouped into panels of 16 and columns (inputs) into groups of 32. A panel's
// groups follow one another, so a kernel streams through a panel front to back. One quantized group
// is
//
//   codes    4-bit: 4 x 64 bytes; byte [i][4n + j] holds row n, columns 4i + j (low nibble) and
//                   16 + 4i + j (high nibble)
//            8-bit: 8 x 64 bytes; byte [i][4n + j] holds row n, column 4i + j, signed
//   scales   16 per set: one set, or two for formats with 16-column groups
//   minimums 16, if the format has them
//
// so that one u8 x s8 dot instruction advances 16 (AVX-512), 8 (AVX2) or 4 (NEON) rows by 4 columns
// with no horizontal sum. weight = scale * code + minimum, where a 4-bit format without minimums
// has minimum = -8 * scale. The file's own codes and scales are kept: packing loses nothing.
//
// A float group is [column][16 rows]. Missing rows of the last panel are zero.
#ifndef WHIT_RUNTIME_OPS_PACKED_MATRIX_H_
#define WHIT_RUNTIME_OPS_PACKED_MATRIX_H_

#include <cstddef>
#include <cstdint>

namespace whit {

inline constexpr size_t kPanelRows = 16;
inline constexpr size_t kGroupColumns = 32;

enum class WeightFormat : uint8_t {
  kU4,         // 4-bit codes, fp16 scales, minimum -8 * scale (Q4_0)
  kU4Min,      // 4-bit codes, fp16 scales and minimums (Q4_1)
  kU4MinF32,   // 4-bit codes, f32 scales and minimums (Q4_K)
  kS8,         // 8-bit codes, fp16 scales (Q8_0, Q5_0)
  kS8Min,      // 8-bit codes, fp16 scales and minimums (Q5_1)
  kS8MinF32,   // 8-bit codes, f32 scales and minimums (Q5_K)
  kS8HalfF32,  // 8-bit codes, f32 scales for each 16 columns (Q6_K)
  kF16,
  kBF16,
  kF32,
};

// Sizes and offsets of a group, in bytes.
struct GroupLayout {
  size_t codes = 0;       // bytes of codes, or of all elements of a float group
  size_t scale_sets = 0;  // sets of 16 scales
  bool f32_scales = false;
  bool minimums = false;
  size_t bytes = 0;

  static constexpr GroupLayout Of(WeightFormat format) {
    GroupLayout g;
    const bool u4 = format <= WeightFormat::kU4MinF32;
    const bool quantized = format <= WeightFormat::kS8HalfF32;
    if (!quantized) {
      g.codes = kPanelRows * kGroupColumns * (format == WeightFormat::kF32 ? 4 : 2);
      g.bytes = g.codes;
      return g;
    }
    g.codes = kPanelRows * kGroupColumns / (u4 ? 2 : 1);
    g.scale_sets = format == WeightFormat::kS8HalfF32 ? 2 : 1;
    g.f32_scales = format == WeightFormat::kU4MinF32 || format == WeightFormat::kS8MinF32 ||
                   format == WeightFormat::kS8HalfF32;
    g.minimums = format == WeightFormat::kU4Min || format == WeightFormat::kS8Min ||
                 format == WeightFormat::kU4MinF32 || format == WeightFormat::kS8MinF32;
    g.bytes = g.codes + (g.scale_sets + (g.minimums ? 1 : 0)) * kPanelRows * (g.f32_scales ? 4 : 2);
    return g;
  }
};

constexpr bool IsQuantized(WeightFormat format) { return format <= WeightFormat::kS8HalfF32; }
constexpr bool HasU4Codes(WeightFormat format) { return format <= WeightFormat::kU4MinF32; }

// A view: the bytes belong to whoever made it (the model's weight arena). Padding to whole groups
// makes a column count that is no multiple of 32 possible for float formats only.
struct PackedMatrix {
  WeightFormat format = WeightFormat::kF32;
  size_t rows = 0;
  size_t columns = 0;
  std::byte* data = nullptr;  // 64-byte aligned

  size_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  size_t groups() const { return (columns + kGroupColumns - 1) / kGroupColumns; }
  size_t group_bytes() const { return GroupLayout::Of(format).bytes; }
  size_t panel_bytes() const { return groups() * group_bytes(); }
  size_t bytes() const { return panels() * panel_bytes(); }
  std::byte* group(size_t panel, size_t group) const {
    return data + panel * panel_bytes() + group * group_bytes();
  }

  // Reads one row back; out has `columns` floats. Used for embedding look-ups and as the reference.
  void UnpackRow(size_t row, float* out) const;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_PACKED_MATRIX_H_
