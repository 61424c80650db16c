// A range of pages, decoded to bfloat16 for the products of AMX tiles.
#ifndef WHIT_RUNTIME_OPS_AMX_RANGE_H_
#define WHIT_RUNTIME_OPS_AMX_RANGE_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "hwy/aligned_allocator.h"
#include "runtime/ops/amx.h"
#include "runtime/ops/attention_range.h"

namespace whit {

// Codes are decoded without their scales: what is left, an integer or a half, is exact in bfloat16.
// Scores and probabilities are multiplied by the scales instead. What is not exact is split,
// x = high + low with high = bfloat16(x), where that matters.
//
// Only where DetectCpuExtension() is kAmx.
class AmxRange {
 public:
  explicit AmxRange(int head_dim);

  void Decode(const RangeView& range);

  int head_dim() const { return head_dim_; }
  // head_dim, up to a multiple of 32, a tile's columns.
  size_t tile_dims() const { return tile_dims_; }
  // Tokens of the table before a page.
  int tokens_before(size_t page) const { return tokens_before_[page]; }
  // How many of the first `pages` pages begin before the table's `visible`-th token.
  size_t PagesBefore(int visible, size_t pages) const {
    return std::lower_bound(tokens_before_, tokens_before_ + pages, visible) - tokens_before_;
  }

  // [tile_dims / 2 pairs][16 tokens][2] of a page: tiles side by side.
  const uint16_t* high_keys(size_t page) const { return high_keys_.get() + page * page_elements(); }
  const uint16_t* low_keys(size_t page) const { return low_keys_.get() + page * page_elements(); }
  // [16 pairs of tokens][16 dims][2] of two pages, the first of them even.
  const uint16_t* values(size_t pair, size_t dim_block) const {
    return values_.get() + (pair * head_dim_ / 16 + dim_block) * amx::kTileElements;
  }
  // Of a page's 16 slots. Scales of FP16 are 1.
  const float* key_scales(size_t page) const { return key_scales_[page]; }
  const float* value_scales(size_t page) const { return value_scales_[page]; }
  // 0, or kNoScore for a slot that holds no token.
  const float* biases(size_t page) const { return biases_[page]; }

  // What must be multiplied for the scores of a page, in growing order.
  enum KeyKind : uint8_t {
    kHighQueries,        // keys of 2 and 4 bits: the query's high part does
    kBothQueries,        // 8 bits
    kBothQueriesAndKeys  // FP16
  };
  static constexpr size_t kNumKeyKinds = 3;
  // The range's pages of a kind, in order.
  absl::Span<const uint8_t> pages_of(KeyKind kind) const {
    return absl::MakeConstSpan(by_kind_[kind].data(), num_by_kind_[kind]);
  }

  // The different means that the range's keys are relative to, as further tokens: 16 to a block of
  // [tile_dims / 2 pairs][16 means][2].
  size_t num_means() const { return num_means_; }
  const uint16_t* high_means(size_t block) const {
    return high_means_.get() + block * page_elements();
  }
  const uint16_t* low_means(size_t block) const {
    return low_means_.get() + block * page_elements();
  }
  // Which of them a page has; kNoMean: none.
  static constexpr uint8_t kNoMean = kRangePages;
  uint8_t mean_of(size_t page) const { return mean_of_[page]; }

 private:
  size_t page_elements() const { return tile_dims_ * kTileTokens; }
  // The first of a pair of pages has the first half of each of its tiles.
  uint16_t* values_of(size_t page) {
    return values_.get() + page / 2 * 2 * kTileTokens * head_dim_ +
           page % 2 * amx::kTileElements / 2;
  }
  void DecodeKeys(const std::byte* page, Rung rung, size_t index);
  void DecodeValues(const std::byte* page, Rung rung, size_t index);
  void ClearValues(size_t index);
  void CollectMeans(const RangeView& range);

  const int head_dim_;
  const size_t tile_dims_;
  hwy::AlignedFreeUniquePtr<uint16_t[]> high_keys_, low_keys_, values_, high_means_, low_means_;
  alignas(64) float key_scales_[kRangePages][kTileTokens] = {};
  alignas(64) float value_scales_[kRangePages][kTileTokens] = {};
  alignas(64) float biases_[kRangePages][kTileTokens] = {};
  int tokens_before_[kRangePages] = {};
  std::array<uint8_t, kRangePages> by_kind_[kNumKeyKinds] = {};
  size_t num_by_kind_[kNumKeyKinds] = {};
  size_t num_means_ = 0;
  uint8_t mean_of_[kRangePages] = {};
};

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_AMX_RANGE_H_
