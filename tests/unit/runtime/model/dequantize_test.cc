#include "runtime/model/dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace whit {
namespace {

// Blocks are written byte by byte as the format's documentation lays them out; the expected values
// are worked out by hand.
constexpr uint16_t kHalf1 = 0x3C00, kHalf2 = 0x4000, kHalfMinus3 = 0xC200, kHalfQuarter = 0x3400;

class Block {
 public:
  explicit Block(TensorType type) : type_(type), bytes_(TensorBlockBytes(type)) {}

  Block& Half(size_t offset, uint16_t bits) {
    std::memcpy(&bytes_[offset], &bits, sizeof(bits));
    return *this;
  }
  Block& Byte(size_t offset, int value) {
    bytes_.at(offset) = static_cast<std::byte>(value);
    return *this;
  }
  std::vector<float> Decode() const {
    std::vector<float> out(TensorBlockElements(type_), NAN);
    DequantizeRow(type_, bytes_.data(), out.size(), out.data());
    return out;
  }

 private:
  TensorType type_;
  std::vector<std::byte> bytes_;
};

template <typename T>
std::vector<float> DecodeElements(TensorType type, const std::vector<T>& elements) {
  std::vector<float> out(elements.size());
  DequantizeRow(type, reinterpret_cast<const std::byte*>(elements.data()), out.size(), out.data());
  return out;
}

TEST(DequantizeTest, F32) {
  const std::vector<float> values = {1.5f, -0.0f, INFINITY, 1e-40f};
  EXPECT_EQ(DecodeElements(TensorType::kF32, values), values);
}

TEST(DequantizeTest, F16) {
  const std::vector<uint16_t> bits = {kHalf1, kHalfMinus3, 0x0001, 0x7BFF, 0xFC00, 0x83FF};
  const std::vector<float> expected = {1.0f, -3.0f, 0x1p-24f, 65504.0f, -INFINITY, -0x3FFp-24f};
  EXPECT_EQ(DecodeElements(TensorType::kF16, bits), expected);
}

TEST(DequantizeTest, BF16) {
  const std::vector<uint16_t> bits = {0x3F80, 0xC040, 0x0001, 0x7F80};
  const std::vector<float> expected = {1.0f, -3.0f, 0x1p-133f, INFINITY};
  EXPECT_EQ(DecodeElements(TensorType::kBF16, bits), expected);
}

TEST(DequantizeTest, Q4_0) {
  // Byte c: columns c (low nibble) and c + 16 (high nibble); 8 is zero.
  const std::vector<float> out =
      Block(TensorType::kQ4_0).Half(0, kHalf2).Byte(2, 0x9F).Byte(2 + 15, 0x08).Decode();
  EXPECT_EQ(out[0], 2 * (15 - 8));
  EXPECT_EQ(out[16], 2 * (9 - 8));
  EXPECT_EQ(out[15], 0);
  EXPECT_EQ(out[31], 2 * (0 - 8));
  EXPECT_EQ(out[1], 2 * (0 - 8));
}

TEST(DequantizeTest, Q4_1) {
  const std::vector<float> out =
      Block(TensorType::kQ4_1).Half(0, kHalf2).Half(2, kHalfMinus3).Byte(4 + 3, 0xA5).Decode();
  EXPECT_EQ(out[3], 2 * 5 - 3);
  EXPECT_EQ(out[19], 2 * 10 - 3);
  EXPECT_EQ(out[0], -3);
}

TEST(DequantizeTest, Q5_0) {
  // High bits of columns 1, 17 and 31: bytes 0, 2 and 3 of the mask.
  const std::vector<float> out = Block(TensorType::kQ5_0)
                                     .Half(0, kHalf2)
                                     .Byte(2, 0x02)
                                     .Byte(4, 0x02)
                                     .Byte(5, 0x80)
                                     .Byte(6 + 1, 0x73)
                                     .Byte(6 + 15, 0xF0)
                                     .Decode();
  EXPECT_EQ(out[1], 2 * (3 + 16 - 16));
  EXPECT_EQ(out[17], 2 * (7 + 16 - 16));
  EXPECT_EQ(out[31], 2 * (15 + 16 - 16));
  EXPECT_EQ(out[15], 2 * (0 - 16));
}

TEST(DequantizeTest, Q5_1) {
  const std::vector<float> out = Block(TensorType::kQ5_1)
                                     .Half(0, kHalf2)
                                     .Half(2, kHalfMinus3)
                                     .Byte(4, 0x01)
                                     .Byte(6, 0x01)
                                     .Byte(8, 0x73)
                                     .Decode();
  EXPECT_EQ(out[0], 2 * (3 + 16) - 3);
  EXPECT_EQ(out[16], 2 * (7 + 16) - 3);
  EXPECT_EQ(out[31], -3);
}

TEST(DequantizeTest, Q8_0) {
  const std::vector<float> out =
      Block(TensorType::kQ8_0).Half(0, kHalfQuarter).Byte(2, 0x80).Byte(2 + 31, 127).Decode();
  EXPECT_EQ(out[0], -32);
  EXPECT_EQ(out[31], 127 * 0.25f);
  EXPECT_EQ(out[1], 0);
}

// Sub-blocks 1 and 6 of scale 5 and 37, minimum 9 and 50. The upper two bits of sub-block 6's pair
// (37 = 10'0101, 50 = 11'0010) lie in the free bits of sub-block 2's.
Block& SetSubBlocks(Block& block) {
  return block.Half(0, kHalf2)
      .Half(2, kHalfQuarter)
      .Byte(4 + 1, 5)
      .Byte(4 + 5, 9)
      .Byte(4 + 10, 0x25)
      .Byte(4 + 2, 0x80)
      .Byte(4 + 6, 0xC0);
}

TEST(DequantizeTest, Q4_K) {
  Block block(TensorType::kQ4_K);
  // Sub-block 1: high nibbles of bytes 0 to 31; sub-block 6: low nibbles of bytes 96 to 127.
  const std::vector<float> out =
      SetSubBlocks(block).Byte(16 + 7, 0xB0).Byte(16 + 96 + 31, 0x0D).Decode();
  EXPECT_EQ(out[32 + 7], 2.0f * 5 * 11 - 0.25f * 9);
  EXPECT_EQ(out[32], -0.25f * 9);
  EXPECT_EQ(out[6 * 32 + 31], 2.0f * 37 * 13 - 0.25f * 50);
  EXPECT_EQ(out[6 * 32], -0.25f * 50);
  EXPECT_EQ(out[0], 0);
}

TEST(DequantizeTest, Q5_K) {
  Block block(TensorType::kQ5_K);
  // The fifth bit of column c of sub-block j is bit j of byte c.
  const std::vector<float> out = SetSubBlocks(block)
                                     .Byte(16 + 7, 1 << 1)
                                     .Byte(16 + 31, 1 << 6)
                                     .Byte(48 + 7, 0xB0)
                                     .Byte(48 + 96 + 31, 0x0D)
                                     .Decode();
  EXPECT_EQ(out[32 + 7], 2.0f * 5 * (11 + 16) - 0.25f * 9);
  EXPECT_EQ(out[6 * 32 + 31], 2.0f * 37 * (13 + 16) - 0.25f * 50);
  EXPECT_EQ(out[6 * 32 + 30], -0.25f * 50);
}

TEST(DequantizeTest, Q6_K) {
  // In the second half: quarter 1 (columns 160 to 191) is the low nibbles of bytes 96 to 127,
  // quarter 3 (224 to 255) their high nibbles; the top bits of both are bits 2-3 and 6-7 of bytes
  // 160 to 191. Each 16 columns have a scale: number 8 + 2 * quarter + (column / 16) % 2.
  const std::vector<float> out = Block(TensorType::kQ6_K)
                                     .Half(208, kHalfQuarter)
                                     .Byte(96 + 20, 0xE5)
                                     .Byte(160 + 20, 0b10'00'01'00)
                                     .Byte(192 + 8 + 2 + 1, 3)
                                     .Byte(192 + 8 + 6 + 1, -7)
                                     .Byte(192, 2)
                                     .Decode();
  EXPECT_EQ(out[128 + 32 + 20], 0.25f * 3 * ((1 << 4 | 5) - 32));
  EXPECT_EQ(out[128 + 96 + 20], 0.25f * -7 * ((2 << 4 | 14) - 32));
  EXPECT_EQ(out[0], 0.25f * 2 * -32);
  EXPECT_EQ(out[16], 0);
}

TEST(DequantizeTest, RowsAreBlocksInOrder) {
  for (TensorType type : {TensorType::kQ4_0, TensorType::kQ8_0, TensorType::kQ6_K}) {
    std::vector<std::byte> bytes(3 * TensorBlockBytes(type));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 % 101);
    const size_t elements = TensorBlockElements(type);
    std::vector<float> row(3 * elements), block(elements);
    DequantizeRow(type, bytes.data(), row.size(), row.data());
    for (size_t i = 0; i < 3; ++i) {
      DequantizeRow(type, bytes.data() + i * TensorBlockBytes(type), elements, block.data());
      EXPECT_EQ(std::vector<float>(row.begin() + i * elements, row.begin() + (i + 1) * elements),
                block);
    }
  }
}

}  // namespace
}  // namespace whit
