#include "kvpool/page_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_format.h"

namespace whit {

PageRef::PageRef(const PageRef& other) : pool_(other.pool_), unit_(other.unit_) {
  if (pool_ != nullptr) pool_->AddReference(unit_, Holder::kRequest);
}
PageRef::PageRef(PageRef&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), unit_(other.unit_) {}
PageRef& PageRef::operator=(PageRef other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(unit_, other.unit_);
  return *this;
}
PageRef::~PageRef() {
  if (pool_ != nullptr) pool_->DropReference(unit_, Holder::kRequest);
}

Rung PageRef::rung() const {
  absl::MutexLock lock(&pool_->mutex_);
  return pool_->slabs_[PagePool::SlabIndex(unit_)].rung;
}
std::byte* PageRef::data() const { return pool_->PageData(unit_); }
bool PageRef::shared() const { return pool_->Shared(unit_); }

void PagePool::FreeDeleter::operator()(References* p) const { std::free(p); }

absl::StatusOr<std::unique_ptr<PagePool>> PagePool::Create(const Options& options) {
  if (options.head_dim <= 0 || options.head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head_dim is %d; it must be a positive multiple of 16", options.head_dim));
  }
  if (PageBytes(Rung::kFp16, options.head_dim) > kSlabBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "head_dim is %d; a page must fit a slab of %d bytes", options.head_dim, kSlabBytes));
  }
  const size_t num_slabs = options.capacity_bytes / kSlabBytes;
  const size_t max_slabs = (size_t{1} << 32) * kPageUnitBytes / kSlabBytes;
  if (num_slabs == 0 || num_slabs > max_slabs) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the KV cache has %d bytes; it must have between %d and %d",
                        options.capacity_bytes, kSlabBytes, max_slabs * kSlabBytes));
  }
  const size_t bytes = num_slabs * kSlabBytes;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the system has no %d bytes for the KV cache", bytes));
  }
  madvise(memory, bytes, MADV_HUGEPAGE);
  return std::unique_ptr<PagePool>(
      new PagePool(options, static_cast<std::byte*>(memory), num_slabs));
}

PagePool::PagePool(const Options& options, std::byte* base, size_t num_slabs)
    : head_dim_(options.head_dim), base_(base), num_slabs_(num_slabs), slabs_(num_slabs) {
  for (int i = 0; i < kNumRungs; ++i) {
    page_bytes_[i] = PageBytes(static_cast<Rung>(i), head_dim_);
    stride_ = std::max(stride_, kSlabBytes / page_bytes_[i]);
  }
  slabs_with_room_.fill(Slab::kNone);
  // Low addresses are used first.
  free_slabs_.resize(num_slabs);
  for (size_t i = 0; i < num_slabs; ++i) free_slabs_[i] = static_cast<uint32_t>(num_slabs - 1 - i);
  references_.reset(static_cast<References*>(std::calloc(num_slabs * stride_, sizeof(References))));
}

PagePool::~PagePool() { munmap(base_, num_slabs_ * kSlabBytes); }

absl::StatusOr<PageRef> PagePool::Allocate(Rung rung) {
  absl::StatusOr<uint32_t> unit = AllocateUnit(rung);
  if (!unit.ok()) return unit.status();
  return PageRef(this, *unit);
}

absl::StatusOr<uint32_t> PagePool::AllocateUnit(Rung rung) {
  std::byte* page = TakePage(rung);
  if (page == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the KV cache of %d bytes has no room for a page at %s",
                        num_slabs_ * kSlabBytes, std::string(RungName(rung))));
  }
  std::memset(page, 0, page_bytes_[static_cast<size_t>(rung)]);
  return static_cast<uint32_t>((page - base_) / kPageUnitBytes);
}

std::byte* PagePool::TakePage(Rung rung) {
  absl::MutexLock lock(&mutex_);
  Slab* slab = SlabWithRoom(rung);
  if (slab == nullptr) return nullptr;
  const size_t slab_index = slab - slabs_.data();
  const size_t page_bytes = page_bytes_[static_cast<size_t>(rung)];
  std::byte* const slab_base = base_ + slab_index * kSlabBytes;
  size_t page;
  if (slab->first_free != 0) {
    page = slab->first_free - 1;
    std::memcpy(&slab->first_free, slab_base + page * page_bytes, sizeof(slab->first_free));
  } else {
    page = slab->untouched++;
  }
  ++slab->used;
  if (!slab->has_room()) UnlinkSlab(*slab);
  ReferencesTo(slab_index, page) = {.by_requests = 1};
  ++used_pages_[static_cast<size_t>(rung)];
  return slab_base + page * page_bytes;
}

void PagePool::RecordFailure(const absl::Status& failure, absl::Status* status) {
  absl::MutexLock lock(&mutex_);
  status->Update(failure);
}

PagePool::Slab* PagePool::SlabWithRoom(Rung rung) {
  const auto index = static_cast<size_t>(rung);
  const uint32_t head = slabs_with_room_[index];
  if (head != Slab::kNone) return &slabs_[head];
  if (free_slabs_.empty()) return nullptr;
  Slab& slab = slabs_[free_slabs_.back()];
  free_slabs_.pop_back();
  slab = {.assigned = true,
          .rung = rung,
          .pages = static_cast<uint16_t>(kSlabBytes / page_bytes_[index])};
  ++slabs_by_rung_[index];
  LinkSlab(slab);
  return &slab;
}

void PagePool::LinkSlab(Slab& slab) {
  uint32_t& head = slabs_with_room_[static_cast<size_t>(slab.rung)];
  const auto index = static_cast<uint32_t>(&slab - slabs_.data());
  slab.previous = Slab::kNone;
  slab.next = head;
  if (head != Slab::kNone) slabs_[head].previous = index;
  head = index;
}

void PagePool::UnlinkSlab(Slab& slab) {
  if (slab.previous != Slab::kNone) {
    slabs_[slab.previous].next = slab.next;
  } else {
    slabs_with_room_[static_cast<size_t>(slab.rung)] = slab.next;
  }
  if (slab.next != Slab::kNone) slabs_[slab.next].previous = slab.previous;
  slab.next = slab.previous = Slab::kNone;
}

size_t PagePool::PageIndex(size_t slab, uint32_t unit) const {
  const size_t offset = size_t{unit} * kPageUnitBytes - slab * kSlabBytes;
  return offset / page_bytes_[static_cast<size_t>(slabs_[slab].rung)];
}

void PagePool::AddReference(uint32_t unit, Holder holder) {
  absl::MutexLock lock(&mutex_);
  const size_t slab = SlabIndex(unit);
  References& references = ReferencesTo(slab, PageIndex(slab, unit));
  if (holder == Holder::kRequest && references.by_requests == 0) {
    const auto rung = static_cast<size_t>(slabs_[slab].rung);
    --reclaimable_pages_[rung];
    ++used_pages_[rung];
  }
  ++references.by(holder);
}

void PagePool::DropReference(uint32_t unit, Holder holder) {
  absl::MutexLock lock(&mutex_);
  const size_t slab_index = SlabIndex(unit);
  Slab& slab = slabs_[slab_index];
  const auto rung = static_cast<size_t>(slab.rung);
  const size_t page = PageIndex(slab_index, unit);
  References& references = ReferencesTo(slab_index, page);
  --references.by(holder);
  if (references.by_requests > 0) return;
  if (holder == Holder::kRequest) {
    --used_pages_[rung];
    ++reclaimable_pages_[rung];
  }
  if (references.by_cache > 0) return;
  --reclaimable_pages_[rung];
  std::memcpy(PageData(unit), &slab.first_free, sizeof(slab.first_free));
  slab.first_free = static_cast<uint16_t>(page + 1);
  const bool was_linked = slab.has_room();
  --slab.used;
  if (slab.used == 0) {
    if (was_linked) UnlinkSlab(slab);
    slab.assigned = false;
    --slabs_by_rung_[rung];
    // A closed one stays aside, so that none of its units means another page yet.
    if (!slab.closed) free_slabs_.push_back(static_cast<uint32_t>(slab_index));
  } else if (!was_linked && !slab.closed) {
    LinkSlab(slab);
  }
}

int PagePool::NumReferences(uint32_t unit) {
  absl::MutexLock lock(&mutex_);
  const size_t slab = SlabIndex(unit);
  return ReferencesTo(slab, PageIndex(slab, unit)).all();
}

size_t PagePool::BeginCompaction(size_t max_slabs) {
  absl::MutexLock lock(&mutex_);
  std::array<size_t, kNumRungs> surplus{};
  std::vector<std::pair<size_t, uint32_t>> candidates;  // bytes to move, slab
  for (int rung = 0; rung < kNumRungs; ++rung) {
    const size_t pages = used_pages_[rung] + reclaimable_pages_[rung];
    const size_t per_slab = kSlabBytes / page_bytes_[rung];
    surplus[rung] = slabs_by_rung_[rung] - (pages + per_slab - 1) / per_slab;
    if (surplus[rung] == 0) continue;
    for (uint32_t i = slabs_with_room_[rung]; i != Slab::kNone; i = slabs_[i].next) {
      candidates.emplace_back(slabs_[i].used * page_bytes_[rung], i);
    }
  }
  std::sort(candidates.begin(), candidates.end());
  closed_.resize(slabs_.size());
  size_t chosen = 0;
  for (const auto& [bytes, i] : candidates) {
    if (chosen == max_slabs) break;
    Slab& slab = slabs_[i];
    size_t& left = surplus[static_cast<size_t>(slab.rung)];
    if (left == 0) continue;
    --left;
    UnlinkSlab(slab);
    slab.closed = true;
    closed_[i] = 1;
    ++chosen;
  }
  compacting_ = chosen > 0;
  return chosen;
}

void PagePool::EndCompaction() {
  absl::MutexLock lock(&mutex_);
  compacting_ = false;
  for (size_t i = 0; i < closed_.size(); ++i) {
    if (closed_[i] == 0) continue;
    closed_[i] = 0;
    Slab& slab = slabs_[i];
    slab.closed = false;
    if (!slab.assigned) {
      free_slabs_.push_back(static_cast<uint32_t>(i));
    } else if (slab.has_room()) {
      LinkSlab(slab);
    }
  }
}

PagePoolStats PagePool::stats() const {
  absl::MutexLock lock(&mutex_);
  PagePoolStats stats = {.capacity_bytes = num_slabs_ * kSlabBytes,
                         .slabs = num_slabs_,
                         .free_slabs = free_slabs_.size(),
                         .slabs_by_rung = slabs_by_rung_,
                         .used_pages_by_rung = used_pages_,
                         .settled_blocks = settled_blocks_.load(std::memory_order_relaxed)};
  for (int i = 0; i < kNumRungs; ++i) {
    stats.used_bytes_by_rung[i] = used_pages_[i] * page_bytes_[i];
    stats.used_bytes += stats.used_bytes_by_rung[i];
    stats.pages_by_rung[i] = used_pages_[i] + reclaimable_pages_[i];
    stats.reclaimable_pages += reclaimable_pages_[i];
    stats.reclaimable_bytes += reclaimable_pages_[i] * page_bytes_[i];
  }
  stats.free_bytes = stats.capacity_bytes - stats.used_bytes - stats.reclaimable_bytes;
  return stats;
}

absl::Status PagePool::CheckInvariants() const {
  absl::MutexLock lock(&mutex_);
  std::array<size_t, kNumRungs> used{}, reclaimable{};
  size_t assigned = 0;
  for (size_t i = 0; i < slabs_.size(); ++i) {
    const Slab& slab = slabs_[i];
    if (!slab.assigned) continue;
    ++assigned;
    const auto rung = static_cast<size_t>(slab.rung);
    std::vector<bool> returned(slab.pages, false);
    size_t free = slab.pages - slab.untouched;
    for (uint16_t next = slab.first_free; next != 0; ++free) {
      const size_t page = next - 1;
      if (page >= slab.untouched || returned[page]) {
        return absl::InternalError(absl::StrFormat("slab %d: broken free list at %d", i, page));
      }
      returned[page] = true;
      std::memcpy(&next, base_ + i * kSlabBytes + page * page_bytes_[rung], sizeof(next));
    }
    for (size_t page = 0; page < slab.untouched; ++page) {
      const References& references = references_[i * stride_ + page];
      if ((references.all() == 0) != returned[page]) {
        return absl::InternalError(
            absl::StrFormat("slab %d page %d: %d references, but it is %s the free list", i, page,
                            references.all(), returned[page] ? "in" : "not in"));
      }
      if (references.all() > 0) ++(references.by_requests > 0 ? used : reclaimable)[rung];
    }
    if (slab.used + free != slab.pages || slab.used == 0) {
      return absl::InternalError(absl::StrFormat("slab %d: %d used and %d free of %d pages", i,
                                                 slab.used, free, slab.pages));
    }
  }
  if (assigned + free_slabs_.size() != slabs_.size()) {
    return absl::InternalError(absl::StrFormat("%d slabs assigned and %d free of %d", assigned,
                                               free_slabs_.size(), slabs_.size()));
  }
  for (int i = 0; i < kNumRungs; ++i) {
    if (used[i] != used_pages_[i] || reclaimable[i] != reclaimable_pages_[i]) {
      return absl::InternalError(
          absl::StrFormat("%d used and %d reclaimable pages at %s, but %d and %d are counted",
                          used[i], reclaimable[i], std::string(RungName(static_cast<Rung>(i))),
                          used_pages_[i], reclaimable_pages_[i]));
    }
  }
  return absl::OkStatus();
}

}  // namespace whit
