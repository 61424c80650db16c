#include "runtime/model/pack_weights.h"

#include <algorithm>
#include <array>
#include <bit>
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

// Group `sub` of a block.
template <TensorType kType>
RowGroup ReadGroup(const uint8_t* block, size_t sub) {
  RowGroup out;
  if constexpr (kType == TensorType::kQ4_0) {
    out.scales[0] = Load<uint16_t>(block);
    std::copy_n(block + 2, 16, out.codes.begin());
  } else if constexpr (kType == TensorType::kQ4_1) {
    out.scales[0] = Load<uint16_t>(block);
    out.minimum = Load<uint16_t>(block + 2);
    std::copy_n(block + 4, 16, out.codes.begin());
  } else if constexpr (kType == TensorType::kQ5_0) {
    out.scales[0] = Load<uint16_t>(block);
    ReadFiveBitCodes(block + 2, block + 6, /*offset=*/16, out);
  } else if constexpr (kType == TensorType::kQ5_1) {
    out.scales[0] = Load<uint16_t>(block);
    out.minimum = Load<uint16_t>(block + 2);
    ReadFiveBitCodes(block + 4, block + 8, /*offset=*/0, out);
  } else if constexpr (kType == TensorType::kQ8_0) {
    out.scales[0] = Load<uint16_t>(block);
    std::copy_n(block + 2, 32, out.codes.begin());
  } else if constexpr (kType == TensorType::kQ4_K) {
    ReadQ4K(block, sub, out);
  } else if constexpr (kType == TensorType::kQ5_K) {
    ReadQ5K(block, sub, out);
  } else {
    static_assert(kType == TensorType::kQ6_K);
    ReadQ6K(block, sub, out);
  }
  return out;
}

constexpr WeightFormat FormatOf(TensorType type) {
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

void StoreScale(std::byte* base, size_t index, bool f32, uint32_t bits) {
  if (f32) {
    std::memcpy(base + 4 * index, &bits, sizeof(bits));
  } else {
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(base + 2 * index, &half, sizeof(half));
  }
}

template <TensorType kType>
void PackQuantizedPanel(const GgufTensor& tensor, const PackedMatrix& m, size_t panel) {
  constexpr WeightFormat kFormat = FormatOf(kType);
  constexpr GroupLayout kLayout = GroupLayout::Of(kFormat);
  constexpr size_t kQuads = HasU4Codes(kFormat) ? 4 : 8;
  const size_t block_bytes = TensorBlockBytes(kType);
  const size_t block_groups = TensorBlockElements(kType) / kGroupColumns;
  const size_t lanes = std::min(kPanelRows, m.rows - panel * kPanelRows);
  const auto* rows =
      reinterpret_cast<const uint8_t*>(tensor.data) + panel * kPanelRows * tensor.row_bytes();
  const size_t row_bytes = tensor.row_bytes();
  std::byte* out = m.group(panel, 0);
  for (size_t g = 0; g < m.groups(); g += block_groups, rows += block_bytes) {
    for (size_t sub = 0; sub < block_groups; ++sub, out += kLayout.bytes) {
      for (size_t lane = 0; lane < lanes; ++lane) {
        const RowGroup in = ReadGroup<kType>(rows + lane * row_bytes, sub);
        for (size_t i = 0; i < kQuads; ++i) {
          std::memcpy(out + 64 * i + 4 * lane, in.codes.data() + 4 * i, 4);
        }
        std::byte* scales = out + kLayout.codes;
        for (size_t set = 0; set < kLayout.scale_sets; ++set) {
          StoreScale(scales, set * kPanelRows + lane, kLayout.f32_scales, in.scales[set]);
        }
        if constexpr (kLayout.minimums) {
          StoreScale(scales, kLayout.scale_sets * kPanelRows + lane, kLayout.f32_scales,
                     in.minimum);
        }
      }
    }
  }
}

// T: an unsigned integer of the element's width.
template <typename T>
void PackFloatPanel(const GgufTensor& tensor, const PackedMatrix& m, size_t panel) {
  const size_t lanes = std::min(kPanelRows, m.rows - panel * kPanelRows);
  const size_t row_bytes = tensor.row_bytes();
  const std::byte* rows = tensor.data + panel * kPanelRows * row_bytes;
  for (size_t g = 0; g < m.groups(); ++g) {
    const size_t columns = std::min(kGroupColumns, m.columns - g * kGroupColumns);
    std::byte* out = m.group(panel, g);
    for (size_t lane = 0; lane < lanes; ++lane) {
      const std::byte* in = rows + lane * row_bytes + g * kGroupColumns * sizeof(T);
      for (size_t c = 0; c < columns; ++c) {
        std::memcpy(out + (c * kPanelRows + lane) * sizeof(T), in + c * sizeof(T), sizeof(T));
      }
    }
  }
}

using PackPanel = void (*)(const GgufTensor&, const PackedMatrix&, size_t panel);

PackPanel PanelPacker(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0:
      return PackQuantizedPanel<TensorType::kQ4_0>;
    case TensorType::kQ4_1:
      return PackQuantizedPanel<TensorType::kQ4_1>;
    case TensorType::kQ5_0:
      return PackQuantizedPanel<TensorType::kQ5_0>;
    case TensorType::kQ5_1:
      return PackQuantizedPanel<TensorType::kQ5_1>;
    case TensorType::kQ8_0:
      return PackQuantizedPanel<TensorType::kQ8_0>;
    case TensorType::kQ4_K:
      return PackQuantizedPanel<TensorType::kQ4_K>;
    case TensorType::kQ5_K:
      return PackQuantizedPanel<TensorType::kQ5_K>;
    case TensorType::kQ6_K:
      return PackQuantizedPanel<TensorType::kQ6_K>;
    case TensorType::kF16:
    case TensorType::kBF16:
      return PackFloatPanel<uint16_t>;
    case TensorType::kF32:
      break;
  }
  return PackFloatPanel<uint32_t>;
}

}  // namespace

PackedMatrix DescribePacked(const GgufTensor& tensor) {
  return {.format = FormatOf(tensor.type), .rows = tensor.rows, .columns = tensor.cols};
}

void PackPanels(const GgufTensor& tensor, const PackedMatrix& matrix, size_t begin, size_t end) {
  const PackPanel pack = PanelPacker(tensor.type);
  for (size_t panel = begin; panel < end; ++panel) pack(tensor, matrix, panel);
}

}  // namespace whit
