#include "runtime/model/dequantize.h"

#include <cstdint>
#include <cstring>

#include "runtime/model/byte_cursor.h"
#include "runtime/ops/half.h"

// A block's fields lie in the order in which each function reads them. Formulas and their order of
// rounding are GGML's, so that every value is equal to its.
namespace whit {
namespace {

float LoadHalf(const std::byte* p) { return HalfToFloat(LoadUnaligned<uint16_t>(p)); }
int Low(std::byte b) { return std::to_integer<int>(b & std::byte{0xF}); }
int High(std::byte b) { return std::to_integer<int>(b >> 4); }

// Blocks of 32 with 4 or 5 bits. A byte holds columns c (low nibble) and c + 16 (high nibble).
void DequantizeQ4_0(const std::byte* block, float* out) {
  const float d = LoadHalf(block);
  const std::byte* nibbles = block + 2;
  for (int c = 0; c < 16; ++c) {
    out[c] = static_cast<float>(Low(nibbles[c]) - 8) * d;
    out[c + 16] = static_cast<float>(High(nibbles[c]) - 8) * d;
  }
}

void DequantizeQ4_1(const std::byte* block, float* out) {
  const float d = LoadHalf(block), m = LoadHalf(block + 2);
  const std::byte* nibbles = block + 4;
  for (int c = 0; c < 16; ++c) {
    out[c] = static_cast<float>(Low(nibbles[c])) * d + m;
    out[c + 16] = static_cast<float>(High(nibbles[c])) * d + m;
  }
}

// Bit c of `high` is the fifth bit of column c.
int FifthBit(uint32_t high, int c) { return static_cast<int>((high >> c) & 1) << 4; }

void DequantizeQ5_0(const std::byte* block, float* out) {
  const float d = LoadHalf(block);
  const auto high = LoadUnaligned<uint32_t>(block + 2);
  const std::byte* nibbles = block + 6;
  for (int c = 0; c < 16; ++c) {
    out[c] = static_cast<float>((Low(nibbles[c]) | FifthBit(high, c)) - 16) * d;
    out[c + 16] = static_cast<float>((High(nibbles[c]) | FifthBit(high, c + 16)) - 16) * d;
  }
}

void DequantizeQ5_1(const std::byte* block, float* out) {
  const float d = LoadHalf(block), m = LoadHalf(block + 2);
  const auto high = LoadUnaligned<uint32_t>(block + 4);
  const std::byte* nibbles = block + 8;
  for (int c = 0; c < 16; ++c) {
    out[c] = static_cast<float>(Low(nibbles[c]) | FifthBit(high, c)) * d + m;
    out[c + 16] = static_cast<float>(High(nibbles[c]) | FifthBit(high, c + 16)) * d + m;
  }
}

void DequantizeQ8_0(const std::byte* block, float* out) {
  const float d = LoadHalf(block);
  for (int c = 0; c < 32; ++c) {
    out[c] = static_cast<float>(LoadUnaligned<int8_t>(block + 2 + c)) * d;
  }
}

// Super-blocks of 256. Q4_K and Q5_K: 8 sub-blocks of 32, whose 6-bit scales and minimums are
// packed into 12 bytes: those of the first four lie in the low 6 bits of 8 bytes, whose free 2 bits
// are the upper ones of the last four.
struct SubBlock {
  float scale;
  float minimum;
};

SubBlock ReadSubBlock(const std::byte* block, int j) {
  const auto packed = [block](int i) { return std::to_integer<int>(block[4 + i]); };
  int scale, minimum;
  if (j < 4) {
    scale = packed(j) & 63;
    minimum = packed(j + 4) & 63;
  } else {
    scale = (packed(j + 4) & 0xF) | (packed(j - 4) >> 6) << 4;
    minimum = packed(j + 4) >> 4 | (packed(j) >> 6) << 4;
  }
  return {LoadHalf(block) * static_cast<float>(scale),
          LoadHalf(block + 2) * static_cast<float>(minimum)};
}

// Sub-blocks 2i and 2i + 1 are the low and the high nibbles of the same 32 bytes.
int SubBlockNibble(const std::byte* nibbles, int j, int c) {
  const std::byte pair = nibbles[32 * (j / 2) + c];
  return j % 2 == 0 ? Low(pair) : High(pair);
}

void DequantizeQ4_K(const std::byte* block, float* out) {
  const std::byte* nibbles = block + 16;
  for (int j = 0; j < 8; ++j) {
    const SubBlock sub = ReadSubBlock(block, j);
    for (int c = 0; c < 32; ++c) {
      *out++ = sub.scale * static_cast<float>(SubBlockNibble(nibbles, j, c)) - sub.minimum;
    }
  }
}

void DequantizeQ5_K(const std::byte* block, float* out) {
  const std::byte *high = block + 16, *nibbles = block + 48;
  for (int j = 0; j < 8; ++j) {
    const SubBlock sub = ReadSubBlock(block, j);
    for (int c = 0; c < 32; ++c) {
      const int fifth = (std::to_integer<int>(high[c]) >> j & 1) << 4;
      *out++ = sub.scale * static_cast<float>(SubBlockNibble(nibbles, j, c) | fifth) - sub.minimum;
    }
  }
}

// 16 sub-blocks of 16 with an 8-bit scale each. Columns come in halves of 128 and quarters of 32 of
// these; quarters q and q + 2 are the nibbles of the same bytes, and 2 further bits of all four lie
// in one byte.
void DequantizeQ6_K(const std::byte* block, float* out) {
  const std::byte *low = block, *high = block + 128, *scales = block + 192;
  const float d = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int c = 0; c < 32; ++c) {
        const std::byte pair = low[64 * half + 32 * (quarter % 2) + c];
        const int top = std::to_integer<int>(high[32 * half + c]) >> (2 * quarter) & 3;
        const int code = (quarter < 2 ? Low(pair) : High(pair)) | top << 4;
        const auto scale = LoadUnaligned<int8_t>(scales + 8 * half + 2 * quarter + c / 16);
        *out++ = d * static_cast<float>(scale) * static_cast<float>(code - 32);
      }
    }
  }
}

template <typename Fn>
void ForEachBlock(TensorType type, const std::byte* row, size_t cols, float* out, Fn dequantize) {
  const auto elements = static_cast<size_t>(TensorBlockElements(type));
  for (size_t begin = 0; begin < cols; begin += elements, row += TensorBlockBytes(type)) {
    dequantize(row, out + begin);
  }
}

}  // namespace

void DequantizeRow(TensorType type, const std::byte* row, size_t cols, float* out) {
  switch (type) {
    case TensorType::kF32:
      std::memcpy(out, row, cols * sizeof(float));
      return;
    case TensorType::kF16:
      return ForEachBlock(type, row, cols, out,
                          [](const std::byte* p, float* o) { *o = LoadHalf(p); });
    case TensorType::kBF16:
      return ForEachBlock(type, row, cols, out, [](const std::byte* p, float* o) {
        *o = BFloat16ToFloat(LoadUnaligned<uint16_t>(p));
      });
    case TensorType::kQ4_0:
      return ForEachBlock(type, row, cols, out, DequantizeQ4_0);
    case TensorType::kQ4_1:
      return ForEachBlock(type, row, cols, out, DequantizeQ4_1);
    case TensorType::kQ5_0:
      return ForEachBlock(type, row, cols, out, DequantizeQ5_0);
    case TensorType::kQ5_1:
      return ForEachBlock(type, row, cols, out, DequantizeQ5_1);
    case TensorType::kQ8_0:
      return ForEachBlock(type, row, cols, out, DequantizeQ8_0);
    case TensorType::kQ4_K:
      return ForEachBlock(type, row, cols, out, DequantizeQ4_K);
    case TensorType::kQ5_K:
      return ForEachBlock(type, row, cols, out, DequantizeQ5_K);
    case TensorType::kQ6_K:
      return ForEachBlock(type, row, cols, out, DequantizeQ6_K);
  }
}

}  // namespace whit
