// Causal attention over pages of any mix of rungs.
//
// Keys and values lie in the pages rotated (kvpool/quantizer.h), so queries are rotated alike and
// the result is rotated back. Against codes of 2 and 4 bits the query is quantized to 8 bits and
// the probabilities of a page to 8 bits; against 8-bit codes both have 16 bits. FP16 pages are
// multiplied in f32.
#ifndef WHIT_RUNTIME_OPS_ATTENTION_H_
#define WHIT_RUNTIME_OPS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "hwy/aligned_allocator.h"
#include "kvpool/page_table.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

struct AttentionShape {
  int num_heads = 0;  // query heads; a multiple of num_kv_heads
  int num_kv_heads = 0;
  int head_dim = 0;  // multiple of 16
  float scale = 0;   // usually 1/sqrt(head_dim)
};

// The queries of one call, in the forms that the kernels read. A query head of a row is
//   rotated [head_dim] f32
//   high, low [head_dim] int8    rotated = unit * (128 * high + low)
class AttentionQueries {
 public:
  AttentionQueries(const AttentionShape& shape, size_t max_rows);

  // `q` is a row of queries after RoPE, [num_heads * head_dim]. Different threads may set different
  // rows.
  void SetRow(size_t row, const float* q);

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

// Consecutive tokens of one sequence. Their own keys and values are in the table already; row i
// sees the table's first first_position + i + 1 tokens.
struct AttentionSlice {
  size_t first_row = 0;  // in AttentionQueries
  float* out = nullptr;  // [num_tokens][num_heads * head_dim], rows out_stride apart
  size_t out_stride = 0;
  int num_tokens = 0;
  int first_position = 0;
  const PageTable* kv = nullptr;
};

// Memory that a caller keeps between calls.
struct AttentionScratch {
  std::vector<float> floats;
};

// out = softmax(scale * q K^T) V for every slice, head and row. Work is split over (slice, KV head,
// tile of queries, range of pages) and merged in an order that depends on the pages alone, so a
// row's result is bitwise the same alone, batched, or with other rows of its prompt, as long as it
// sees the same pages.
void Attention(const AttentionShape& shape, int layer, const AttentionQueries& queries,
               absl::Span<const AttentionSlice> slices, ThreadPool& pool,
               AttentionScratch& scratch);

// The plain reference: one row, decoded pages, double sums, no SIMD. q and out are
// [num_heads * head_dim], q after RoPE.
void AttentionReference(const AttentionShape& shape, int layer, const PageTable& kv,
                        int num_visible, const float* q, float* out);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ATTENTION_H_
