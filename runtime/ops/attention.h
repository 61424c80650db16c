// Causal attention over pages.
#ifndef WHIT_RUNTIME_OPS_ATTENTION_H_
#define WHIT_RUNTIME_OPS_ATTENTION_H_

#include <vector>

#include "absl/types/span.h"
#include "kvpool/page_table.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

struct AttentionShape {
  int num_heads = 0;     // query heads; a multiple of num_kv_heads
  int num_kv_heads = 0;
  int head_dim = 0;      // multiple of 16
  float scale = 0;       // usually 1/sqrt(head_dim)
};

// Consecutive tokens of one sequence. Their own keys and values are in the table already; row i attends
// to the first first_position + i + 1 tokens.
struct AttentionSlice {
  const float* q = nullptr;  // [num_tokens][num_heads * head_dim] after RoPE, rows q_stride apart
  size_t q_stride = 0;
  float* out = nullptr;      // [num_tokens][num_heads * head_dim], rows out_stride apart
  size_t out_stride = 0;
  int num_tokens = 0;
  int first_position = 0;
  const PageTable* kv = nullptr;
};

// Memory that a caller keeps between calls.
struct AttentionScratch {
  std::vector<float> floats;
};

// out = softmax(scale * q K^T) V for every slice, head and row. Work is split over (slice, KV head, row
// block, tile range), the same way for a given sequence whatever else is in the call, so a row's result
// is bitwise the same alone, batched, or prefilled in other chunks.
void Attention(const AttentionShape& shape, int layer, absl::Span<const AttentionSlice> slices,
               ThreadPool& pool, AttentionScratch& scratch);

// The plain reference: one row, double sums, no SIMD. out is [num_heads * head_dim].
void AttentionReference(const AttentionShape& shape, int layer, const PageTable& kv, int num_visible,
                        const float* q, float* out);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ATTENTION_H_
