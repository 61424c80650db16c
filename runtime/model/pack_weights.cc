#include "runtime/model/pack_weights.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/ops/half.h"

namespace whit {
namespace {

// 32 columns of one row, as the packed group wants them. Scales keep the width of the packed
// format: fp16 bits in the lower half, or f32 bits.
struct RowGroup {
  // 4-bit formats use the first 16 bytes: column c in the low nibble of byte c, 16 + c in the high
  // one.
  std::array<uint8_t, kGroupColumns> codes;
  std::array<uint32_t, 2> scales{};
  uint32_t minimum = 0;
};

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(Load<uint16_t>(p)); }
uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

// The 5th bits of Q5_0 and Q5_1: bit c belongs to column c.
void ReadFiveBitCodes(const uint8_t* high_bits, const uint8_t* nibbles, int offset, RowGroup& out) {
  const auto high = Load<uint32_t>(high_bits);
  for (size_t c = 0; c < 16; ++c) {
    out.codes[c] = static_cast<uint8_t>(((nibbles[c] & 0xF) | ((high >> c) & 1) << 4) - offset);
    out.codes[c + 16] =
        static_cast<uint8_t>(((nibbles[c] >> 4) | ((high >> (c + 16)) & 1) << 4) - offset);
  }
}

// 6-bit scale and minimum of the sub-block `j` of Q4_K and Q5_K, packed into 12 bytes.
void ReadSixBitScales(const uint8_t* packed, size_t j, int& scale, int& minimum) {
  if (j < 4) {
    scale = packed[j] & 63;
    minimum = packed[j + 4] & 63;
  } else {
    scale = (packed[j + 4] & 0xF) | (packed[j - 4] >> 6) << 4;
    minimum = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

// Scale and minimum of sub-block `j` of a Q4_K or Q5_K super-block: products of fp16 and 6 bits,
// exact in f32.
void ReadSuperBlockScales(const uint8_t* block, size_t j, RowGroup& out) {
  int scale, minimum;
  ReadSixBitScales(block + 4, j, scale, minimum);
  out.scales[0] = Bits(LoadHalf(block) * static_cast<float>(scale));
  out.minimum = Bits(-LoadHalf(block + 2) * static_cast<float>(minimum));
}

void ReadQ4K(const uint8_t* block, size_t j, RowGroup& out) {
  ReadSuperBlockScales(block, j, out);
  const uint8_t* nibbles = block + 16 + 32 * (j / 2);
  const int shift = j % 2 == 0 ? 0 : 4;
  for (size_t c = 0; c < 16; ++c) {
    out.codes[c] = static_cast<uint8_t>(((nibbles[c] >> shift) & 0xF) |
                                        ((nibbles[c + 16] >> shift) & 0xF) << 4);
  }
}

void ReadQ5K(const uint8_t* block, size_t j, RowGroup& out) {
  ReadSuperBlockScales(block, j, out);
  const uint8_t* high = block + 16;
  const uint8_t* nibbles = block + 48 + 32 * (j / 2);
  const int shift = j % 2 == 0 ? 0 : 4;
  for (size_t c = 0; c < 32; ++c) {
    out.codes[c] = static_cast<uint8_t>(((nibbles[c] >> shift) & 0xF) | ((high[c] >> j) & 1) << 4);
  }
}

void ReadQ6K(const uint8_t* block, size_t j, RowGroup& out) {
  // Sub-blocks 0..3 share 64 bytes of low nibbles and 32 of high bits; 4..7 the next ones.
  const size_t half = j / 4, quarter = j % 4;
  const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
  const uint8_t* high = block + 128 + 32 * half;
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192 + 8 * half + 2 * quarter);
  const float d = LoadHalf(block + 208);
  for (size_t c = 0; c < 32; ++c) {
    const int nibble = (low[c] >> (quarter < 2 ? 0 : 4)) & 0xF;
    out.codes[c] = static_cast<uint8_t>((nibble | ((high[c] >> (2 * quarter)) & 3) << 4) - 32);
  }
  out.scales = {Bits(d * scales[0]), Bits(d * scales[1])};
}

RowGroup ReadGroup(TensorType type, const uint8_t* row, size_t g) {
  RowGroup out;
  const size_t per_block = TensorBlockElements(type) / kGroupColumns;
  const uint8_t* block = row + g / per_block * TensorBlockBytes(type);
  switch (type) {
    case TensorType::kQ4_0:
      out.scales[0] = Load<uint16_t>(block);
      std::copy_n(block + 2, 16, out.codes.begin());
      break;
    case TensorType::kQ4_1:
      out.scales[0] = Load<uint16_t>(block);
      out.minimum = Load<uint16_t>(block + 2);
      std::copy_n(block + 4, 16, out.codes.begin());
      break;
    case TensorType::kQ5_0:
      out.scales[0] = Load<uint16_t>(block);
      ReadFiveBitCodes(block + 2, block + 6, /*offset=*/16, out);
      break;
    case TensorType::kQ5_1:
      out.scales[0] = Load<uint16_t>(block);
      out.minimum = Load<uint16_t>(block + 2);
      ReadFiveBitCodes(block + 4, block + 8, /*offset=*/0, out);
      break;
    case TensorType::kQ8_0:
      out.scales[0] = Load<uint16_t>(block);
      std::copy_n(block + 2, 32, out.codes.begin());
      break;
    case TensorType::kQ4_K:
      ReadQ4K(block, g % per_block, out);
      break;
    case TensorType::kQ5_K:
      ReadQ5K(block, g % per_block, out);
      break;
    case TensorType::kQ6_K:
      ReadQ6K(block, g % per_block, out);
      break;
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      break;  // float formats have no groups to read; see PackFloatPanel
  }
  return out;
}

void StoreScale(std::byte* base, size_t index, bool f32, uint32_t bits) {
  if (f32) {
    std::memcpy(base + 4 * index, &bits, sizeof(bits));
  } else {
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(base + 2 * index, &half, sizeof(half));
  }
}

void PackQuantizedPanel(const GgufTensor& tensor, const PackedMatrix& m, size_t panel) {
  const GroupLayout layout = GroupLayout::Of(m.format);
  const size_t quads = HasU4Codes(m.format) ? 4 : 8;
  const size_t lanes = std::min(kPanelRows, m.rows - panel * kPanelRows);
  for (size_t lane = 0; lane < lanes; ++lane) {
    const auto* row = reinterpret_cast<const uint8_t*>(tensor.data) +
                      (panel * kPanelRows + lane) * tensor.row_bytes();
    for (size_t g = 0; g < m.groups(); ++g) {
      const RowGroup in = ReadGroup(tensor.type, row, g);
      std::byte* out = m.group(panel, g);
      for (size_t i = 0; i < quads; ++i) {
        std::memcpy(out + 64 * i + 4 * lane, in.codes.data() + 4 * i, 4);
      }
      std::byte* scales = out + layout.codes;
      for (size_t set = 0; set < layout.scale_sets; ++set) {
        StoreScale(scales, set * kPanelRows + lane, layout.f32_scales, in.scales[set]);
      }
      if (layout.minimums) {
        StoreScale(scales, layout.scale_sets * kPanelRows + lane, layout.f32_scales, in.minimum);
      }
    }
  }
}

void PackFloatPanel(const GgufTensor& tensor, const PackedMatrix& m, size_t panel) {
  const size_t size = TensorBlockBytes(tensor.type);
  const size_t lanes = std::min(kPanelRows, m.rows - panel * kPanelRows);
  for (size_t lane = 0; lane < lanes; ++lane) {
    const std::byte* row = tensor.data + (panel * kPanelRows + lane) * tensor.row_bytes();
    for (size_t column = 0; column < m.columns; ++column) {
      std::memcpy(m.group(panel, 0) + (column * kPanelRows + lane) * size, row + column * size,
                  size);
    }
  }
}

}  // namespace

WeightFormat PackedFormat(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0:
      return WeightFormat::kU4;
    case TensorType::kQ4_1:
      return WeightFormat::kU4Min;
    case TensorType::kQ4_K:
      return WeightFormat::kU4MinF32;
    case TensorType::kQ5_0:
    case TensorType::kQ8_0:
      return WeightFormat::kS8;
    case TensorType::kQ5_1:
      return WeightFormat::kS8Min;
    case TensorType::kQ5_K:
      return WeightFormat::kS8MinF32;
    case TensorType::kQ6_K:
      return WeightFormat::kS8HalfF32;
    case TensorType::kF16:
      return WeightFormat::kF16;
    case TensorType::kBF16:
      return WeightFormat::kBF16;
    case TensorType::kF32:
      break;
  }
  return WeightFormat::kF32;
}

PackedMatrix DescribePacked(const GgufTensor& tensor) {
  return {.format = PackedFormat(tensor.type), .rows = tensor.rows, .columns = tensor.cols};
}

void PackWeights(const GgufTensor& tensor, const PackedMatrix& matrix, ThreadPool& pool) {
  pool.ParallelFor(matrix.panels(), 4, [&](size_t begin, size_t end, int) {
    for (size_t panel = begin; panel < end; ++panel) {
      if (IsQuantized(matrix.format)) {
        PackQuantizedPanel(tensor, matrix, panel);
      } else {
        PackFloatPanel(tensor, matrix, panel);
      }
    }
  });
}

}  // namespace whit
