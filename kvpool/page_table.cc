#include "kvpool/page_table.h"

#include <algorithm>
#include <utility>

namespace whit {

PageTable::PageTable(PagePool* pool, int num_layers, int num_kv_heads)
    : pool_(pool), num_kv_heads_(num_kv_heads), lists_(size_t{1} * num_layers * num_kv_heads) {}

PageTable::~PageTable() { Truncate(0); }

PageTable& PageTable::operator=(PageTable&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(num_kv_heads_, other.num_kv_heads_);
  std::swap(room_, other.room_);
  std::swap(lists_, other.lists_);
  return *this;
}

absl::Status PageTable::Extend(int num_tokens) {
  const size_t before = NumPages(room_), after = NumPages(room_ + num_tokens);
  for (List& list : lists_) {
    for (size_t page = before; page < after; ++page) {
      absl::StatusOr<uint32_t> unit = pool_->AllocateUnit(Rung::kFp16);
      if (!unit.ok()) {
        Truncate(before);
        return unit.status();
      }
      list.pages.push_back({.unit = *unit, .rung = Rung::kFp16});
    }
  }
  room_ += num_tokens;
  return absl::OkStatus();
}

void PageTable::Truncate(size_t pages) {
  for (List& list : lists_) {
    while (list.pages.size() > pages) {
      pool_->DropReference(list.pages.back().unit);
      list.pages.pop_back();
    }
  }
}

void PageTable::Append(int layer, int kv_head, int num_tokens, TokenRows rows) {
  List& list = lists_[layer * num_kv_heads_ + kv_head];
  while (num_tokens > 0) {
    PageEntry& page = list.pages[list.tokens / kTileTokens];
    const int slot = page.tokens;
    const int count = std::min(num_tokens, kTileTokens - slot);
    WriteTokens(pool_->PageData(page.unit), page.rung, pool_->head_dim(), slot, count, rows, nullptr);
    page.tokens = static_cast<uint8_t>(slot + count);
    list.tokens += count;
    num_tokens -= count;
    rows.keys += count * rows.stride;
    rows.values += count * rows.stride;
  }
}

absl::Span<const PageEntry> PageTable::pages(int layer, int kv_head) const {
  const List& list = lists_[layer * num_kv_heads_ + kv_head];
  return absl::MakeConstSpan(list.pages).subspan(0, NumPages(list.tokens));
}

size_t PageTable::page_bytes() const {
  size_t bytes = 0;
  for (const List& list : lists_) {
    for (const PageEntry& page : list.pages) bytes += PageBytes(page.rung, pool_->head_dim());
  }
  return bytes;
}

size_t PageTable::metadata_bytes() const {
  size_t bytes = sizeof(*this) + lists_.capacity() * sizeof(List);
  for (const List& list : lists_) bytes += list.pages.capacity() * sizeof(PageEntry);
  return bytes;
}

}  // namespace whit
