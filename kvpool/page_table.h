// PageTable: one sequence's keys and values, as lists of pages per (layer, KV head).
#ifndef WHIT_KVPOOL_PAGE_TABLE_H_
#define WHIT_KVPOOL_PAGE_TABLE_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvpool/page.h"
#include "kvpool/page_pool.h"

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
  PageTable(PageTable&&) noexcept;
  PageTable& operator=(PageTable&&) noexcept;

  // Makes room for `num_tokens` more tokens in every (layer, head), all or nothing: on
  // RESOURCE_EXHAUSTED the table is as before. A part-filled page that is shared is copied here.
  absl::Status Extend(int num_tokens);

  // Writes one token's key (after RoPE) and value, head_dim floats each, rounded to the page's
  // precision, into the room made by Extend.
  void Append(int layer, int kv_head, int num_tokens, const float* keys, size_t key_stride,
              const float* values, size_t value_stride);

  // The pages holding tokens of (layer, head), in the order they were appended. Tokens with room but
  // not yet appended are not in it. Valid until the next call of Append or Extend.
  absl::Span<const PageEntry> pages(int layer, int kv_head) const;

  int num_tokens() const;  // appended to every (layer, head); lags while a forward pass is under way
  const PagePool& pool() const { return *pool_; }

  // Bytes of the pool's pages this table holds, and of its own bookkeeping.
  size_t page_bytes() const;
  size_t metadata_bytes() const;

 private:
  PagePool* pool_;
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_TABLE_H_
