// The queries of one attention call, in the forms that its kernels read.
#ifndef WHIT_RUNTIME_OPS_ATTENTION_QUERIES_H_
#define WHIT_RUNTIME_OPS_ATTENTION_QUERIES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "hwy/aligned_allocator.h"

namespace whit {

struct AttentionShape {
  int num_heads = 0;  // query heads; a multiple of num_kv_heads
  int num_kv_heads = 0;
  int head_dim = 0;  // multiple of 16
  float scale = 0;   // usually 1/sqrt(head_dim)
};

// A query head of a row is
//   rotated [head_dim] f32
//   high, low [head_dim] int8    rotated = unit * (128 * high + low)
class AttentionQueries {
 public:
  AttentionQueries(const AttentionShape& shape, size_t max_rows);

  // `q` is a row of queries after RoPE, [num_heads * head_dim]. Of rows for AMX tiles
  // (AttentionSlice::tiles), `rotated` alone is set. Different threads may set different rows.
  void SetRow(size_t row, const float* q, bool tiles = false);

  struct View {
    const float* rotated;
    const int8_t* high;
    const int8_t* low;
    float unit;
    int32_t high_sum, low_sum;
  };
  View view(size_t row, int head) const;

 private:
  struct Scalars {
    float unit;
    int32_t high_sum, low_sum;
  };
  const AttentionShape shape_;
  hwy::AlignedFreeUniquePtr<float[]> rotated_;      // [row][head][head_dim]
  hwy::AlignedFreeUniquePtr<int8_t[]> high_, low_;  // likewise
  std::vector<Scalars> scalars_;                    // [row][head]
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ATTENTION_QUERIES_H_
