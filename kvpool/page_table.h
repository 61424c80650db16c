// PageTable: one sequence's keys and values, as lists of pages per (layer, KV head).
#ifndef WHIT_KVPOOL_PAGE_TABLE_H_
#define WHIT_KVPOOL_PAGE_TABLE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvpool/key_means.h"
#include "kvpool/page.h"
#include "kvpool/page_pool.h"
#include "kvpool/quantizer.h"

namespace whit {

// How a sequence keeps its newest and its first tokens.
struct RecentRing {
  // The newest tokens stay at this rung. At FP16 with an unlimited ring nothing is ever quantized.
  Rung rung = Rung::kFp16;
  // Tokens behind the newest that are not yet decided. A page leaves the ring when all its tokens
  // are older, so the ring holds up to a page more.
  int tokens = 0;
  // The first page is at this rung from the start and stays there: it has the sink, which attention
  // always returns to, and whose rounding to 8 bits alone costs more than that of all other tokens.
  Rung sink_rung = Rung::kFp16;

  static constexpr int kUnlimited = 1 << 30;
};

// Append-only. Every (layer, KV head) has its own list: settled pages, then the ring's. Attention
// does not depend on the order of keys, so settled pages of one rung fill up with whatever tokens
// were given that rung. Pages are released with the table.
//
// Threads: calls for *different* (layer, head) pairs may run on different threads at once; what has
// no such parameters excludes everything else.
class PageTable {
 public:
  struct Shape {
    int num_layers = 0;
    int num_kv_heads = 0;
  };
  // `pool` outlives the table, and so does `means`, which may be null: keys are then quantized as
  // they are. Positions that are appended must be prepared in `means`.
  PageTable(PagePool* pool, const Shape& shape, const RecentRing& ring, const KeyMeans* means);
  ~PageTable();
  PageTable(PageTable&&) noexcept = default;
  PageTable& operator=(PageTable&& other) noexcept;

  // Adds tokens, rotated (quantizer.h), to the ring.
  void Append(int layer, int kv_head, int num_tokens, TokenRows rows);

  // A page of the ring that is due to leave it.
  struct LeavingPage {
    int first_position = 0;
    int tokens = 0;
  };
  // True, and which page, if one is due.
  bool NextLeaving(int layer, int kv_head, LeavingPage* page) const;
  // Writes the leaving page's tokens into settled pages, rungs[i] for its i-th token.
  void Settle(int layer, int kv_head, absl::Span<const Rung> rungs);

  // All pages of (layer, head), settled ones first. Valid until the list's next change.
  absl::Span<const PageEntry> pages(int layer, int kv_head) const {
    return list(layer, kv_head).pages;
  }

  // Decodes the list's tokens in the order of its pages: [tokens][head_dim] each.
  void Read(int layer, int kv_head, std::vector<float>* keys, std::vector<float>* values) const;

  // RESOURCE_EXHAUSTED once the pool had no page to give; what should have gone there is lost, and
  // so is the sequence. Admission's reservations keep it from happening.
  const absl::Status& status() const { return status_; }

  // Appended to every (layer, head); lags while a forward pass is under way.
  int num_tokens() const { return lists_.back().tokens; }
  const PagePool& pool() const { return *pool_; }
  const KeyMeans* key_means() const { return means_; }

  // What the table holds, over all layers and KV heads.
  struct Usage {
    size_t page_bytes = 0;      // of the pool
    size_t metadata_bytes = 0;  // the lists themselves
    std::array<size_t, kNumRungs> bytes_by_rung{};
    std::array<int64_t, kNumRungs> tokens_by_rung{};
  };
  Usage usage() const;

 private:
  struct List {
    List() { open.fill(-1); }
    std::vector<PageEntry> pages;
    int settled = 0;  // the first pages, out of the ring
    int tokens = 0;
    int settled_tokens = 0;
    std::array<int, kNumRungs> open;  // the settled page of each rung that has free slots, or -1
  };

  List& list(int layer, int kv_head) { return lists_[layer * num_kv_heads_ + kv_head]; }
  const List& list(int layer, int kv_head) const { return lists_[layer * num_kv_heads_ + kv_head]; }

  // A new page for tokens from `position` on; false after recording why there is none.
  bool NewPage(Rung rung, int position, PageEntry* page);
  const float* MeanOf(const PageEntry& page, int layer, int kv_head) const {
    return page.mean_block == PageEntry::kNoMean ? nullptr
                                                 : means_->mean(page.mean_block, layer, kv_head);
  }
  void Write(int layer, int kv_head, PageEntry& page, int count, const TokenRows& rows);
  // The page's tokens in order, to the open pages of their rungs.
  void Scatter(int layer, int kv_head, const PageEntry& page, absl::Span<const Rung> rungs);

  PagePool* pool_;
  int num_kv_heads_;
  RecentRing ring_;
  const KeyMeans* means_;
  std::vector<List> lists_;  // [layer][KV head]
  absl::Status status_;      // written under the pool's lock
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_TABLE_H_
