// Rows of activations in the forms that matrix products read.
#ifndef WHIT_RUNTIME_OPS_ACTIVATIONS_H_
#define WHIT_RUNTIME_OPS_ACTIVATIONS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "hwy/aligned_allocator.h"
#include "runtime/ops/amx.h"
#include "runtime/ops/packed_matrix.h"

namespace whit {

// 8-bit activations double the arithmetic rate and suit prompts; 16-bit ones remove the noise of
// rounding activations, and suit decoding, which waits for weights anyway. bfloat16, for CPUs that
// have tiles of it (CpuExtension::kAmx), is several times as fast as 8 bits and less noisy; weights
// are then rounded to bfloat16 as well.
enum class ActivationFormat : uint8_t { kInt8, kInt16, kBFloat16 };

// The fastest for many rows on this CPU.
ActivationFormat PromptActivations();

// Rows of activations, quantized: each group of 32 columns of a row has its own scale, max|x| over
// the largest code. Groups are the outer dimension, as the kernels walk them:
//   codes     [group][row][32]  an 8-bit row's codes, or the high bytes of a 16-bit row's
//   low_codes [group][row][32]  16-bit rows: code = 128 * high + low
//   scales    [group][row]      x = scale * code
//   sums      [group][row]      scale * sum of the group's codes, which a weight's minimum
//   multiplies
// or rounded to bfloat16, as the tiles of AMX are loaded: [row / 16][group][row % 16][32].
// Float weights read `floats` instead, the caller's unquantized rows.
class Activations {
 public:
  Activations(size_t max_rows, size_t max_columns);

  // Sets the shape, a format for each row; contents become undefined. Within the maxima.
  void Reset(absl::Span<const ActivationFormat> formats, size_t columns);
  // Some rows and some of their columns: whole groups of 32, but for a last one that ends at
  // columns().
  struct Block {
    size_t first_row;
    size_t rows;
    size_t first_column;
    size_t columns;
  };
  // Quantizes a block from `x`, its rows `stride` floats apart; a last group is padded with zeros.
  // Blocks may be set by different threads.
  void SetBlock(const Block& block, const float* x, size_t stride);
  // The whole of one row, from columns() floats.
  void SetRow(size_t row, const float* x) {
    SetBlock({.first_row = row, .rows = 1, .first_column = 0, .columns = columns_}, x, columns_);
  }
  // For float weights: where the rows themselves lie, `stride` floats apart.
  void SetFloats(const float* floats, size_t stride) {
    floats_ = floats;
    float_stride_ = stride;
  }

  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t groups() const { return (columns_ + kGroupColumns - 1) / kGroupColumns; }
  ActivationFormat format(size_t row) const { return formats_[row]; }
  absl::Span<const ActivationFormat> formats() const {
    return absl::MakeConstSpan(formats_.data(), rows_);
  }
  const int8_t* codes(size_t group) const { return codes_.get() + group * rows_ * kGroupColumns; }
  const int8_t* low_codes(size_t group) const {
    return low_codes_.get() + group * rows_ * kGroupColumns;
  }
  const float* scales(size_t group) const { return scales_.get() + group * rows_; }
  const float* sums(size_t group) const { return sums_.get() + group * rows_; }
  // The first of 16 rows of bfloat16.
  const uint16_t* bfloat16_tile(size_t tile, size_t group) const {
    return bfloat16_.get() + BFloat16Place(tile * amx::kTileRows, group, groups());
  }
  uint16_t bfloat16(size_t row, size_t column) const {
    return bfloat16_[BFloat16Place(row, column / kGroupColumns, groups()) + column % kGroupColumns];
  }
  const float* float_row(size_t row) const { return floats_ + row * float_stride_; }

  // Where a row's group of bfloat16 begins; that of the next group lies amx::kTileElements on.
  static size_t BFloat16Place(size_t row, size_t group, size_t groups) {
    return (row / amx::kTileRows * groups + group) * amx::kTileElements +
           row % amx::kTileRows * kGroupColumns;
  }
  // The memory that SetBlock writes to.
  struct Memory {
    const ActivationFormat* formats;
    int8_t* codes;
    int8_t* low_codes;
    float* scales;
    float* sums;
    uint16_t* bfloat16;
    size_t rows;
    size_t groups;
  };

 private:
  size_t rows_ = 0;
  size_t columns_ = 0;
  std::vector<ActivationFormat> formats_;  // of each row
  hwy::AlignedFreeUniquePtr<int8_t[]> codes_;
  hwy::AlignedFreeUniquePtr<int8_t[]> low_codes_;
  hwy::AlignedFreeUniquePtr<float[]> scales_;
  hwy::AlignedFreeUniquePtr<float[]> sums_;
  hwy::AlignedFreeUniquePtr<uint16_t[]> bfloat16_;  // null where no CPU extension reads it
  const float* floats_ = nullptr;
  size_t float_stride_ = 0;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ACTIVATIONS_H_
