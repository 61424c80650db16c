// Attention of many queries on AMX tiles.
//
// Sixteen queries at a time meet a range of pages that has been decoded to bfloat16 for all of
// them. Products are of bfloat16 and summed in f32; softmax is in f32, and its probabilities are
// rounded to bfloat16 for the product with the values.
#ifndef WHIT_RUNTIME_OPS_AMX_ATTENTION_H_
#define WHIT_RUNTIME_OPS_AMX_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "runtime/ops/amx_range.h"
#include "runtime/ops/attention_range.h"

namespace whit {

// Elsewhere nothing of this is compiled.
#if defined(__x86_64__)
inline constexpr bool kHasAmxAttention = true;
#else
inline constexpr bool kHasAmxAttention = false;
#endif

// The work of one thread. Only where DetectCpuExtension() is kAmx.
class AmxAttention {
 public:
  // Queries that share a pass over a decoded range, and those that share its decoding.
  static constexpr int kQueryTile = 16;
  static constexpr int kMaxQueries = 6 * kQueryTile;

  explicit AmxAttention(int head_dim);
  int head_dim() const { return range_.head_dim(); }

  // Query `index`, rotated, [head_dim]. `scale` of a dot product is its score (kLog2E).
  void SetQuery(int index, const float* rotated, float scale);
  void SetRange(const RangeView& range) { range_.Decode(range); }

  // Queries [first, first + count) of those set, at most kQueryTile and `first` a multiple of it,
  // against the range's first `num_pages` pages. visible[i]: tokens of the table that query
  // first + i sees, in growing order. p and the partials' values have room for kQueryTile queries,
  // and the values are equally far apart. p are not there afterwards unless keep_p.
  void Attend(int first, int count, const int* visible, size_t num_pages, Partial* partials,
              RangeProbabilities* p, bool keep_p);

 private:
  // Rows that are used together fall into different sets of the first-level cache.
  static constexpr size_t kWeightStride = kRangeTokens + 32;
  static constexpr size_t kMeanStride = kRangePages + 16;

  struct Queries {
    const uint16_t* high;
    const uint16_t* low;
    size_t row_bytes;
  };

  void MultiplyMeans(const Queries& queries);
  template <AmxRange::KeyKind kKind>
  void MultiplyKeys(const Queries& queries, size_t num_pages, float* scores) const;
  // Weights and values of pairs of pages.
  void MultiplyValues(size_t pairs, const uint16_t* weights, size_t weight_bytes, float* values,
                      size_t stride) const;

  AmxRange range_;
  hwy::AlignedFreeUniquePtr<uint16_t[]> high_queries_, low_queries_;  // [kMaxQueries][tile_dims]
  // Of one tile of queries: q . mean, and 0 for no mean; p * the value's scale, as bfloat16.
  alignas(64) float mean_scores_[kQueryTile][kMeanStride] = {};
  alignas(64) uint16_t weights_[kQueryTile][kWeightStride] = {};
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_AMX_ATTENTION_H_
