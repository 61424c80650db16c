#include "kvpool/page_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace whit {
namespace {

// Room for one more entry. Grows by a quarter: doubling would leave up to half of a long sequence's
// metadata unused.
void ReserveOne(std::vector<PageEntry>& pages) {
  if (pages.size() == pages.capacity()) pages.reserve(pages.size() + pages.size() / 4 + 4);
}

}  // namespace

class PageTable::SettledBlock {
 public:
  explicit SettledBlock(PagePool* pool) : pool_(pool) {
    pool_->settled_blocks_.fetch_add(1, std::memory_order_relaxed);
  }
  ~SettledBlock() { pool_->settled_blocks_.fetch_sub(1, std::memory_order_relaxed); }
  SettledBlock(const SettledBlock&) = delete;
  SettledBlock& operator=(const SettledBlock&) = delete;

 private:
  PagePool* const pool_;
};

PageTable::PageTable(PagePool* pool, const Shape& shape, const RecentRing& ring,
                     const KeyMeans* means)
    : pool_(pool),
      num_kv_heads_(shape.num_kv_heads),
      ring_(ring),
      means_(means),
      lists_(size_t{1} * shape.num_layers * shape.num_kv_heads) {}

PageTable::~PageTable() {
  for (List& list : lists_) {
    for (const PageEntry& page : list.pages) pool_->DropReference(page.unit, holder_);
  }
}

PageTable& PageTable::operator=(PageTable&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(holder_, other.holder_);
  std::swap(num_kv_heads_, other.num_kv_heads_);
  std::swap(ring_, other.ring_);
  std::swap(means_, other.means_);
  std::swap(lists_, other.lists_);
  std::swap(blocks_, other.blocks_);
  std::swap(status_, other.status_);
  return *this;
}

bool PageTable::NewPage(Rung rung, int position, PageEntry* page) {
  absl::StatusOr<uint32_t> unit = pool_->AllocateUnit(rung);
  if (!unit.ok()) {
    pool_->RecordFailure(unit.status(), &status_);
    return false;
  }
  *page = {.unit = *unit, .rung = rung};
  if (means_ != nullptr && rung != Rung::kFp16) page->mean_block = KeyMeans::Block(position);
  return true;
}

bool PageTable::MakeOwn(PageEntry& page) {
  if (pool_->Shared(page.unit)) {
    absl::StatusOr<uint32_t> copy = pool_->AllocateUnit(page.rung);
    if (!copy.ok()) {
      pool_->RecordFailure(copy.status(), &status_);
      return false;
    }
    std::memcpy(pool_->PageData(*copy), pool_->PageData(page.unit),
                PageBytes(page.rung, pool_->head_dim()));
    pool_->DropReference(page.unit, holder_);
    page.unit = *copy;
  }
  KeepTokens(pool_->PageData(page.unit), page.rung, pool_->head_dim(), page.tokens);
  return true;
}

void PageTable::Write(int layer, int kv_head, PageEntry& page, int count, const TokenRows& rows) {
  WriteTokens(pool_->PageData(page.unit), page.rung, pool_->head_dim(), page.tokens, count, rows,
              MeanOf(page, layer, kv_head));
  page.tokens = static_cast<uint8_t>(page.tokens + count);
}

void PageTable::Append(int layer, int kv_head, int num_tokens, TokenRows rows) {
  List& list = this->list(layer, kv_head);
  while (num_tokens > 0) {
    const bool ring_has_room = static_cast<int>(list.pages.size()) > list.settled &&
                               list.pages.back().tokens < kTileTokens;
    if (!ring_has_room) {
      PageEntry page;
      const Rung rung = list.pages.empty() ? ring_.sink_rung : ring_.rung;
      if (!NewPage(rung, list.tokens, &page)) return;
      ReserveOne(list.pages);
      list.pages.push_back(page);
    }
    PageEntry& page = list.pages.back();
    const int count = std::min<int>(num_tokens, kTileTokens - page.tokens);
    Write(layer, kv_head, page, count, rows);
    list.tokens += count;
    num_tokens -= count;
    rows.keys += count * rows.stride;
    rows.values += count * rows.stride;
  }
}

bool PageTable::NextLeaving(int layer, int kv_head, LeavingPage* page) const {
  const List& list = this->list(layer, kv_head);
  if (list.tokens - list.settled_tokens < ring_.tokens_at(list.tokens) + kTileTokens) return false;
  *page = {.first_position = list.settled_tokens,
           .tokens = list.pages[list.settled].tokens,
           .sink = list.settled_tokens == 0};
  return true;
}

void PageTable::ReadLeaving(int layer, int kv_head, float* keys, float* values) const {
  const List& list = this->list(layer, kv_head);
  Decode(layer, kv_head, list.pages[list.settled], keys, values);
}

void PageTable::Decode(int layer, int kv_head, const PageEntry& page, float* keys,
                       float* values) const {
  ReadTokens(pool_->PageData(page.unit), page.rung, pool_->head_dim(), page.tokens,
             MeanOf(page, layer, kv_head), keys, values);
}

void PageTable::Settle(int layer, int kv_head, absl::Span<const Rung> rungs,
                       const TokenRows* decoded) {
  List& list = this->list(layer, kv_head);
  const PageEntry leaving = list.pages[list.settled];
  const bool sink = list.settled_tokens == 0;
  const bool stays =
      std::all_of(rungs.begin(), rungs.end(), [&](Rung rung) { return rung == leaving.rung; });
  if (sink || stays) {
    ++list.settled;
  } else {
    list.pages.erase(list.pages.begin() + list.settled);
    if (decoded != nullptr) {
      Scatter(layer, kv_head, *decoded, rungs);
    } else {
      const auto d = static_cast<size_t>(pool_->head_dim());
      std::vector<float> keys(leaving.tokens * d), values(leaving.tokens * d);
      Decode(layer, kv_head, leaving, keys.data(), values.data());
      Scatter(layer, kv_head, {.keys = keys.data(), .values = values.data(), .stride = d}, rungs);
    }
    pool_->DropReference(leaving.unit, holder_);
  }
  list.settled_tokens += leaving.tokens;
  if (list.settled_tokens % kForkTokens == 0) {
    Mark mark = {.settled = list.settled, .open = list.open};
    for (int i = 0; i < kNumRungs; ++i) {
      if (list.open[i] >= 0) mark.open_tokens[i] = list.pages[list.open[i]].tokens;
    }
    list.marks.push_back(mark);
    if (&list == &lists_.back()) blocks_.push_back(std::make_shared<SettledBlock>(pool_));
  }
}

int PageTable::forkable_tokens() const { return static_cast<int>(blocks_.size()) * kForkTokens; }

PageTable PageTable::Fork(int tokens, Holder holder) const {
  PageTable fork(pool_, {}, ring_, means_);
  fork.holder_ = holder;
  fork.num_kv_heads_ = num_kv_heads_;
  fork.lists_.resize(lists_.size());
  if (tokens == 0) return fork;
  const size_t num_marks = tokens / kForkTokens;
  fork.blocks_.assign(blocks_.begin(), blocks_.begin() + static_cast<ptrdiff_t>(num_marks));
  for (size_t i = 0; i < lists_.size(); ++i) {
    const List& from = lists_[i];
    List& to = fork.lists_[i];
    const Mark& mark = from.marks[num_marks - 1];
    to.pages.assign(from.pages.begin(), from.pages.begin() + mark.settled);
    to.marks.assign(from.marks.begin(), from.marks.begin() + static_cast<ptrdiff_t>(num_marks));
    to.settled = mark.settled;
    to.tokens = to.settled_tokens = tokens;
    to.open = mark.open;
    for (int rung = 0; rung < kNumRungs; ++rung) {
      if (mark.open[rung] < 0) continue;
      to.pages[mark.open[rung]].tokens = mark.open_tokens[rung];
      to.borrowed[rung] = true;
    }
    for (const PageEntry& page : to.pages) pool_->AddReference(page.unit, holder);
  }
  return fork;
}

bool PageTable::Demote(int layer, int kv_head, size_t index, Rung rung,
                       absl::Span<PageTable* const> tables) {
  const List& list = this->list(layer, kv_head);
  if (index == 0 || index >= static_cast<size_t>(list.settled)) return false;
  const PageEntry page = list.pages[index];
  if (page.rung <= rung) return false;
  const absl::StatusOr<uint32_t> lower = pool_->AllocateUnit(rung);
  if (!lower.ok()) return false;
  int tokens = 0;  // others may see more of the page
  for (const PageTable* table : tables) {
    const absl::Span<const PageEntry> pages = table->pages(layer, kv_head);
    if (index < pages.size() && pages[index].unit == page.unit) {
      tokens = std::max<int>(tokens, pages[index].tokens);
    }
  }
  const auto d = static_cast<size_t>(pool_->head_dim());
  std::vector<float> keys(tokens * d), values(tokens * d);
  const float* mean = MeanOf(page, layer, kv_head);
  ReadTokens(pool_->PageData(page.unit), page.rung, pool_->head_dim(), tokens, mean, keys.data(),
             values.data());
  WriteTokens(pool_->PageData(*lower), rung, pool_->head_dim(), 0, tokens,
              {.keys = keys.data(), .values = values.data(), .stride = d}, mean);
  ReplaceForAll(layer, kv_head, index, *lower, rung, tables);
  return true;
}

void PageTable::Evacuate(int layer, int kv_head, absl::Span<PageTable* const> tables) {
  const List& list = this->list(layer, kv_head);
  for (size_t i = 0; i < list.pages.size(); ++i) {
    const PageEntry page = list.pages[i];
    if (!pool_->MustMove(page.unit)) continue;
    const absl::StatusOr<uint32_t> to = pool_->AllocateUnit(page.rung);
    if (!to.ok()) return;
    std::memcpy(pool_->PageData(*to), pool_->PageData(page.unit),
                PageBytes(page.rung, pool_->head_dim()));
    ReplaceForAll(layer, kv_head, i, *to, page.rung, tables);
  }
}

void PageTable::ReplaceForAll(int layer, int kv_head, size_t index, uint32_t to, Rung rung,
                              absl::Span<PageTable* const> tables) {
  const uint32_t from = list(layer, kv_head).pages[index].unit;
  for (PageTable* table : tables) {
    std::vector<PageEntry>& pages = table->list(layer, kv_head).pages;
    if (index >= pages.size() || pages[index].unit != from) continue;
    pool_->AddReference(to, table->holder_);
    pool_->DropReference(from, table->holder_);
    pages[index].unit = to;
    pages[index].rung = rung;
  }
  pool_->DropReference(to, Holder::kRequest);  // that it was allocated with
}

int64_t PageTable::num_settled_pages() const {
  int64_t pages = 0;
  for (const List& list : lists_) pages += list.settled;
  return pages;
}

void PageTable::CountSharedOpenPages(SharedPageCounts* counts) const {
  for (const List& list : lists_) {
    for (const int open : list.open) {
      if (open < 0) continue;
      const PageEntry& page = list.pages[open];
      const int references = pool_->NumReferences(page.unit);
      if (references == 1) continue;
      SharedPage& shared = (*counts)[page.unit];
      shared.rung = page.rung;
      shared.references = references;
      ++shared.copies;
    }
  }
}

void PageTable::Scatter(int layer, int kv_head, const TokenRows& rows,
                        absl::Span<const Rung> rungs) {
  List& list = this->list(layer, kv_head);
  const auto tokens = static_cast<int>(rungs.size());
  for (int i = 0; i < tokens;) {
    int& open = list.open[static_cast<size_t>(rungs[i])];
    bool& borrowed = list.borrowed[static_cast<size_t>(rungs[i])];
    if (open < 0) {
      PageEntry fresh;
      if (!NewPage(rungs[i], list.settled_tokens + i, &fresh)) return;
      open = list.settled++;
      ReserveOne(list.pages);
      list.pages.insert(list.pages.begin() + open, fresh);
    }
    PageEntry& target = list.pages[open];
    if (borrowed || pool_->Shared(target.unit)) {
      if (!MakeOwn(target)) return;
      borrowed = false;
    }
    // As many as follow at the same rung and fit.
    int count = 1;
    while (i + count < tokens && target.tokens + count < kTileTokens &&
           rungs[i + count] == rungs[i]) {
      ++count;
    }
    Write(layer, kv_head, target, count,
          {.keys = rows.keys + i * rows.stride,
           .values = rows.values + i * rows.stride,
           .stride = rows.stride});
    if (target.tokens == kTileTokens) open = -1;
    i += count;
  }
}

void PageTable::Read(int layer, int kv_head, std::vector<float>* keys,
                     std::vector<float>* values) const {
  const List& list = this->list(layer, kv_head);
  const auto d = static_cast<size_t>(pool_->head_dim());
  keys->resize(list.tokens * d);
  values->resize(list.tokens * d);
  size_t offset = 0;
  for (const PageEntry& page : list.pages) {
    Decode(layer, kv_head, page, keys->data() + offset, values->data() + offset);
    offset += page.tokens * d;
  }
}

PageTable::Usage PageTable::usage() const {
  Usage usage;
  usage.metadata_bytes = sizeof(*this) + lists_.capacity() * sizeof(List);
  for (const List& list : lists_) {
    usage.metadata_bytes +=
        list.pages.capacity() * sizeof(PageEntry) + list.marks.capacity() * sizeof(Mark);
    for (const PageEntry& page : list.pages) {
      const auto rung = static_cast<size_t>(page.rung);
      usage.bytes_by_rung[rung] += PageBytes(page.rung, pool_->head_dim());
      usage.tokens_by_rung[rung] += page.tokens;
    }
  }
  for (size_t bytes : usage.bytes_by_rung) usage.page_bytes += bytes;
  return usage;
}

}  // namespace whit
