// Causal attention over pages of any mix of rungs.
//
// Keys and values lie in the pages rotated (kvpool/quantizer.h), so queries are rotated alike and
// the result is rotated back. Against codes of 2 and 4 bits the query is quantized to 8 bits and
// the probabilities of a page to 8 bits; against 8-bit codes both have 16 bits. FP16 pages are
// multiplied in f32. Slices of prompts go other ways where the CPU has AMX (amx_attention.h).
#ifndef WHIT_RUNTIME_OPS_ATTENTION_H_
#define WHIT_RUNTIME_OPS_ATTENTION_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "controller/token_signals.h"
#include "hwy/aligned_allocator.h"
#include "kvpool/page_table.h"
#include "runtime/ops/amx_attention.h"
#include "runtime/ops/attention_queries.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// Consecutive tokens of one sequence. Their own keys and values are in the table already; row i
// sees the table's first first_position + i + 1 tokens.
struct AttentionSlice {
  size_t first_row = 0;  // in AttentionQueries
  float* out = nullptr;  // [num_tokens][num_heads * head_dim], rows out_stride apart
  size_t out_stride = 0;
  int num_tokens = 0;
  int first_position = 0;
  const PageTable* kv = nullptr;
  // Multiplies bfloat16 on AMX tiles (amx_attention.h): faster for many rows. Only where
  // DetectCpuExtension() is kAmx.
  bool tiles = false;
  // If not null: given what the table's undecided tokens receive. It has all of them, with those of
  // this slice.
  AttentionTally* tally = nullptr;
  // If not null: [num_tokens][num_heads], set to the sum of the squared probabilities.
  float* squared_probabilities = nullptr;
};

// Memory that a caller keeps between calls.
struct AttentionScratch {
  class Floats {
   public:
    // Room for n floats, 64-byte aligned. What was there before is lost when it grows.
    float* Reserve(size_t n) {
      if (size_ < n) floats_ = hwy::AllocateAligned<float>(size_ = n);
      return floats_.get();
    }

   private:
    hwy::AlignedFreeUniquePtr<float[]> floats_;
    size_t size_ = 0;
  };
  struct Thread {
    Floats floats;
    std::unique_ptr<AmxAttention> amx;  // made when it is first needed
    size_t fetched_item = 0;  // of the work of one call, whose pages it has fetched; 0: none
  };
  Floats shared;
  std::vector<Thread> by_thread;
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
