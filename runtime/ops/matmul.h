// Matrix multiplication of activations with packed weights: 8- or 16-bit integer or bfloat16
// activations against 4- and 8-bit weights, f32 against float weights.
#ifndef WHIT_RUNTIME_OPS_MATMUL_H_
#define WHIT_RUNTIME_OPS_MATMUL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "hwy/aligned_allocator.h"
#include "runtime/ops/amx.h"
#include "runtime/ops/packed_matrix.h"
#include "runtime/ops/thread_pool.h"

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
  // Where the codes, scale and sum of a row's first group are; those of the next follow at the
  // strides.
  struct RowCodes {
    int8_t* codes;
    int8_t* low_codes;
    float* scale;
    float* sum;
    size_t code_stride;
    size_t scale_stride;
  };

  Activations(size_t max_rows, size_t max_columns);

  // Sets the shape; contents become undefined. Within the maxima.
  void Reset(size_t rows, size_t columns);
  // Quantizes one row from `x` (columns floats; not a multiple of 32: padded with zeros). Rows may
  // be set by different threads.
  void SetRow(size_t row, const float* x, ActivationFormat format);
  // For float weights: where the rows themselves lie, `stride` floats apart.
  void SetFloats(const float* floats, size_t stride) {
    floats_ = floats;
    float_stride_ = stride;
  }

  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t groups() const { return (columns_ + kGroupColumns - 1) / kGroupColumns; }
  ActivationFormat format(size_t row) const { return formats_[row]; }
  const int8_t* codes(size_t group) const { return codes_.get() + group * rows_ * kGroupColumns; }
  const int8_t* low_codes(size_t group) const {
    return low_codes_.get() + group * rows_ * kGroupColumns;
  }
  const float* scales(size_t group) const { return scales_.get() + group * rows_; }
  const float* sums(size_t group) const { return sums_.get() + group * rows_; }
  // The first of 16 rows of bfloat16.
  const uint16_t* bfloat16_tile(size_t tile, size_t group) const {
    return bfloat16_.get() + (tile * groups() + group) * amx::kTileElements;
  }
  uint16_t bfloat16(size_t row, size_t column) const {
    return bfloat16_tile(
        row / amx::kTileRows,
        column / kGroupColumns)[row % amx::kTileRows * kGroupColumns + column % kGroupColumns];
  }
  const float* float_row(size_t row) const { return floats_ + row * float_stride_; }

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

// One product of a MatMul call.
struct MatMulOutput {
  const PackedMatrix* weights = nullptr;
  float* out = nullptr;  // [activation row][weight row], rows `stride` floats apart
  size_t stride = 0;
  bool accumulate = false;  // add to out instead of overwriting it
};

// out = activations * weights^T for every output, in one parallel loop; all share the activations.
// A row's result is bitwise the same whatever the number of rows and threads.
void MatMul(const Activations& activations, absl::Span<const MatMulOutput> outputs,
            ThreadPool& pool);

// The plain reference for one element, in double: what MatMul approximates up to float rounding.
double MatMulReference(const Activations& activations, size_t row, const PackedMatrix& weights,
                       size_t weight_row);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_MATMUL_H_
