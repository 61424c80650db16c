// What attention's kernels work on: a tile of queries against a range of pages.
#ifndef WHIT_RUNTIME_OPS_ATTENTION_RANGE_H_
#define WHIT_RUNTIME_OPS_ATTENTION_RANGE_H_

#include <cstddef>
#include <cstdint>
#include <numbers>

#include "absl/types/span.h"
#include "controller/token_signals.h"
#include "kvpool/key_means.h"
#include "kvpool/page.h"

namespace whit {

// The softmax over a long sequence is taken range by range, and the ranges' results are merged in
// order. Ranges are cut at the same pages whoever asks, which is what makes a row's result the same
// bit for bit however the work was split.
inline constexpr int kRangePages = 32;
inline constexpr int kRangeTokens = kRangePages * kTileTokens;

// Queries that share one pass over a page. Each follows the same arithmetic in a tile of any size.
inline constexpr int kQueryTile = 4;

// The score of a slot that holds no token or one that the query may not see.
inline constexpr float kNoScore = -1e30f;

// Scores are exponents of 2: scale * log2(e) * q . k.
inline constexpr float kLog2E = std::numbers::log2e_v<float>;

// What a range, or several merged, contributes to one query's output: sum over its tokens of
// p = 2^(score - max), and of p * value.
struct Partial {
  float max = 0;
  float sum = 0;
  float squares = 0;        // sum of p^2, if anybody asked
  float* values = nullptr;  // [head_dim]
};

// Up to kQueryTile queries of one KV head (attention_queries.h), and how many of the table's tokens
// each may see.
struct QueryTile {
  int count = 0;
  int visible[kQueryTile] = {};
  const float* rotated[kQueryTile] = {};
  const int8_t* high[kQueryTile] = {};
  const int8_t* low[kQueryTile] = {};
  float unit[kQueryTile] = {};
  int32_t high_sum[kQueryTile] = {};
  int32_t low_sum[kQueryTile] = {};
};

// At most kRangePages consecutive pages of one (layer, KV head).
struct RangeView {
  absl::Span<const PageEntry> pages;
  // Whether they were the `next` of this thread's last call. Pages that it is likely to come to
  // next are fetched while it works on these, so that memory is never idle: they lie anywhere in
  // the pool, where hardware does not see them coming.
  bool fetched = false;
  absl::Span<const PageEntry> next;
  int tokens_before = 0;  // tokens in the list's pages before these
  const std::byte* base = nullptr;
  const KeyMeans* means = nullptr;  // may be null if no page has a mean
  int layer = 0;
  int kv_head = 0;
  int head_dim = 0;
  float scale = 0;

  const std::byte* page_data(size_t i) const { return base + pages[i].unit * kPageUnitBytes; }
  const float* mean(uint16_t block) const { return means->mean(block, layer, kv_head); }
};

// p of a query for the slots of a range, 16 slots a page. Rows of several queries, side by side, do
// not compete for the same sets of the first-level cache.
using RangeProbabilities = float[kRangeTokens + 16];

// A tile of queries against one range. The last query sees a token of it; the partial of one that
// does not means nothing, and its p are then not 0.
void AttendRange(const RangeView& range, const QueryTile& tile, Partial* partials,
                 RangeProbabilities* p);

// into[i] = into[i] * keep + add[i] * factor
void ScaleAndAdd(float* into, float keep, const float* add, float factor, size_t n);

// The sum of p[i]^2.
float SumOfSquares(const float* p, size_t n);

// What n tokens receive from queries that attend to them with probabilities p[i] * factors[i], and
// whose recent attention counts weights[i]: added, query by query, to sum, squares and recent
// (token_signals.h), [n]. p[i] begin at `slot` of their range.
void AddReceived(const RangeProbabilities* p, size_t slot, absl::Span<const float> factors,
                 const float* weights, size_t n, const ReceivedAttention& received);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_ATTENTION_RANGE_H_
