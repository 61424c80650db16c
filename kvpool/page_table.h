// PageTable: one sequence's keys and values, as lists of pages per (layer, KV head).
#ifndef WHIT_KVPOOL_PAGE_TABLE_H_
#define WHIT_KVPOOL_PAGE_TABLE_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvpool/key_means.h"
#include "kvpool/page.h"
#include "kvpool/page_pool.h"
#include "kvpool/quantizer.h"

namespace whit {

// How a sequence keeps its newest and its first tokens.
struct RecentRing {
  // The newest tokens stay at this rung.
  Rung rung = Rung::kFp16;
  // Tokens behind the newest that are not yet decided. A page leaves the ring when all its tokens
  // are older, so the ring holds up to a page more.
  int tokens = 0;
  // If above 0, a ring of more tokens where that is a small share of a long sequence: one of every
  // `growth`, up to max_tokens.
  int growth = 0;
  int max_tokens = 0;
  // The first page is at this rung from the start and stays there: it has the sink, which attention
  // always returns to, and whose rounding to 8 bits alone costs more than that of all other tokens.
  Rung sink_rung = Rung::kFp16;

  int tokens_at(int sequence_tokens) const {
    return growth <= 0 ? tokens : std::max(tokens, std::min(sequence_tokens / growth, max_tokens));
  }
  bool operator==(const RecentRing&) const = default;
};

// Pages, by unit, and how many of those who share one are about to copy it.
struct SharedPage {
  Rung rung = Rung::kFp16;
  int references = 0;
  int copies = 0;
};
using SharedPageCounts = absl::flat_hash_map<uint32_t, SharedPage>;

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
    bool sink = false;  // the first page: it keeps its rung whatever is decided
  };
  // True, and which page, if one is due.
  bool NextLeaving(int layer, int kv_head, LeavingPage* page) const;
  // Decodes its tokens: [tokens][head_dim] each.
  void ReadLeaving(int layer, int kv_head, float* keys, float* values) const;
  // Writes the leaving page's tokens into settled pages, rungs[i] for its i-th token. `decoded`:
  // what ReadLeaving gave, if it was asked, so that it need not be decoded again.
  void Settle(int layer, int kv_head, absl::Span<const Rung> rungs,
              const TokenRows* decoded = nullptr);

  // Forks may begin at multiples of this many tokens.
  static constexpr int kForkTokens = 128;
  // How many tokens a fork could begin with: all that have left the ring, down to a multiple of
  // kForkTokens.
  int forkable_tokens() const;
  // A table that begins with this one's first `tokens` tokens (a multiple of kForkTokens, at most
  // forkable_tokens()), as they are settled here. One for the cache is not written to.
  PageTable Fork(int tokens, Holder holder = Holder::kRequest) const;

  // Here and in Evacuate, `tables` are all that may hold pages of this one's pool, itself among
  // them. Whoever shares a settled page has it at the same place of the same list.

  // Replaces a settled page, for all who hold it, by one of a lower rung with the same tokens. One
  // with free slots goes on to take the tokens that it took before. Returns false, and changes
  // nothing, if there is no room or the page is not settled, the sink or not above `rung`.
  bool Demote(int layer, int kv_head, size_t page, Rung rung, absl::Span<PageTable* const> tables);
  // Moves the list's pages out of the slabs that compaction has chosen (PagePool::BeginCompaction).
  void Evacuate(int layer, int kv_head, absl::Span<PageTable* const> tables);

  // All pages of (layer, head), settled ones first. Valid until the list's next change.
  absl::Span<const PageEntry> pages(int layer, int kv_head) const {
    return list(layer, kv_head).pages;
  }

  // Decodes the list's tokens in the order of its pages: [tokens][head_dim] each.
  void Read(int layer, int kv_head, std::vector<float>* keys, std::vector<float>* values) const;

  // RESOURCE_EXHAUSTED once the pool had no page to give; what should have gone there is lost, and
  // so is the sequence. Admission's reservations keep it from happening.
  const absl::Status& status() const { return status_; }

  // In every (layer, head); they lag while a forward pass is under way.
  int num_tokens() const { return lists_.back().tokens; }
  int num_settled_tokens() const { return lists_.back().settled_tokens; }
  // Over all lists: how many of pages() are settled, the first page being the sink.
  int num_settled_pages(int layer, int kv_head) const { return list(layer, kv_head).settled; }
  int64_t num_settled_pages() const;
  // Pages that this table shares and will copy when it next settles tokens. Adds one to each one's
  // count.
  void CountSharedOpenPages(SharedPageCounts* counts) const;
  const PagePool& pool() const { return *pool_; }
  const RecentRing& ring() const { return ring_; }
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
  // kForkTokens tokens that have left the ring; counts itself in the pool.
  class SettledBlock;

  // A list as it was when the first kForkTokens * n tokens had left the ring.
  struct Mark {
    int settled = 0;
    std::array<int, kNumRungs> open;
    std::array<uint8_t, kNumRungs> open_tokens{};  // of open pages
  };
  struct List {
    List() { open.fill(-1); }
    std::vector<PageEntry> pages;
    std::vector<Mark> marks;
    int settled = 0;  // the first pages, out of the ring
    int tokens = 0;
    int settled_tokens = 0;
    std::array<int, kNumRungs> open;  // the settled page of each rung that has free slots, or -1
    std::array<bool, kNumRungs> borrowed{};  // open pages that came with a fork
  };

  List& list(int layer, int kv_head) { return lists_[layer * num_kv_heads_ + kv_head]; }
  const List& list(int layer, int kv_head) const { return lists_[layer * num_kv_heads_ + kv_head]; }

  // A new page for tokens from `position` on; false after recording why there is none.
  bool NewPage(Rung rung, int position, PageEntry* page);
  // The page's tokens: [tokens][head_dim] each.
  void Decode(int layer, int kv_head, const PageEntry& page, float* keys, float* values) const;
  const float* MeanOf(const PageEntry& page, int layer, int kv_head) const {
    return page.mean_block == PageEntry::kNoMean ? nullptr
                                                 : means_->mean(page.mean_block, layer, kv_head);
  }
  // Everyone's entry for the page becomes one for `to`, which is ours to give.
  void ReplaceForAll(int layer, int kv_head, size_t index, uint32_t to, Rung rung,
                     absl::Span<PageTable* const> tables);
  // Makes a page that came with a fork the table's own, with the same tokens and free slots behind
  // them: others may hold it, or have left theirs there.
  bool MakeOwn(PageEntry& page);
  void Write(int layer, int kv_head, PageEntry& page, int count, const TokenRows& rows);
  // A page's tokens in order, to the open pages of their rungs.
  void Scatter(int layer, int kv_head, const TokenRows& rows, absl::Span<const Rung> rungs);

  PagePool* pool_;
  Holder holder_ = Holder::kRequest;
  int num_kv_heads_;
  RecentRing ring_;
  const KeyMeans* means_;
  std::vector<List> lists_;                                  // [layer][KV head]
  std::vector<std::shared_ptr<const SettledBlock>> blocks_;  // one for each mark of the last list
  absl::Status status_;                                      // written under the pool's lock
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_TABLE_H_
