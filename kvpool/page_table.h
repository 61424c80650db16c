// PageTable: one sequence's keys and values, as lists of pages per (layer, KV head).
#ifndef WHIT_KVPOOL_PAGE_TABLE_H_
#define WHIT_KVPOOL_PAGE_TABLE_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvpool/page.h"
#include "kvpool/page_pool.h"
#include "kvpool/quantizer.h"

namespace whit {

// Append-only. Every (layer, KV head) has its own list. Pages are released with the table.
//
// Threads: Extend and destruction belong to the pool's thread. Append and pages() of *different*
// (layer, head) pairs may run on different threads at once, between two calls of Extend.
class PageTable {
 public:
  // `pool` outlives the table.
  PageTable(PagePool* pool, int num_layers, int num_kv_heads);
  ~PageTable();
  PageTable(PageTable&&) noexcept = default;
  PageTable& operator=(PageTable&& other) noexcept;

  // Makes room for `num_tokens` more tokens in every (layer, head), all or nothing: on
  // RESOURCE_EXHAUSTED the table is as before.
  absl::Status Extend(int num_tokens);

  // Writes tokens, rounded to the page's precision, into the room made by Extend.
  void Append(int layer, int kv_head, int num_tokens, TokenRows rows);

  // The pages holding tokens of (layer, head), in the order they were appended. Tokens with room
  // but not yet appended are not in it. Valid until the next call of Append or Extend.
  absl::Span<const PageEntry> pages(int layer, int kv_head) const;

  // Appended to every (layer, head); lags while a forward pass is under way.
  int num_tokens() const { return lists_.back().tokens; }
  const PagePool& pool() const { return *pool_; }

  // Bytes of the pool's pages this table holds, and of its own bookkeeping.
  size_t page_bytes() const;
  size_t metadata_bytes() const;

 private:
  // Pages of one (layer, head). Those past `tokens` hold nothing yet.
  struct List {
    std::vector<PageEntry> pages;
    int tokens = 0;
  };
  static size_t NumPages(int tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }
  void Truncate(size_t pages);  // every list to at most this many pages

  PagePool* pool_;
  int num_kv_heads_;
  int room_ = 0;             // tokens that the pages of every list have been allocated for
  std::vector<List> lists_;  // [layer][KV head]; empty after a move
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_TABLE_H_
