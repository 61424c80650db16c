// PagePool: the one owner of KV memory.
#ifndef WHIT_KVPOOL_PAGE_POOL_H_
#define WHIT_KVPOOL_PAGE_POOL_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvpool/page.h"
#include "kvpool/rung.h"

namespace whit {

class PagePool;

// A counted reference to one page; the page returns to the pool with its last reference. Copying
// shares the page. Not thread-safe: belongs to the thread that owns the pool.
class PageRef {
 public:
  PageRef() = default;
  PageRef(const PageRef& other);
  PageRef(PageRef&& other) noexcept;
  PageRef& operator=(PageRef other) noexcept;
  ~PageRef();

  explicit operator bool() const { return pool_ != nullptr; }
  uint32_t unit() const { return unit_; }
  Rung rung() const;
  std::byte* data() const;
  bool shared() const;  // another reference exists

 private:
  friend class PagePool;
  PageRef(PagePool* pool, uint32_t unit) : pool_(pool), unit_(unit) {}
  PagePool* pool_ = nullptr;
  uint32_t unit_ = 0;
};

struct PagePoolStats {
  size_t capacity_bytes = 0;
  size_t used_bytes = 0;  // pages handed out
  size_t free_bytes = 0;  // capacity - used, in whatever slab it lies
  std::array<size_t, kNumRungs> used_bytes_by_rung{};
  std::array<size_t, kNumRungs> pages_by_rung{};
};

// Fixed capacity, allocated once. Pages of one rung come from slabs of that size class; a slab that
// becomes empty returns to the common store.
//
// Threads: Allocate and PageRef belong to one thread (the engine's). Page *contents* may be read and
// written by worker threads while the owner waits for them. stats() may be called from any thread.
class PagePool {
 public:
  struct Options {
    size_t capacity_bytes = 0;  // at least one slab
    int head_dim = 0;           // multiple of 16
  };
  // INVALID_ARGUMENT names the bound; RESOURCE_EXHAUSTED if the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<PagePool>> Create(const Options& options);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A zeroed page. RESOURCE_EXHAUSTED when no slab has room; never grows, never throws.
  absl::StatusOr<PageRef> Allocate(Rung rung);

  int head_dim() const { return head_dim_; }
  // Where an entry's page lies: base() + entry.unit * kPageUnitBytes.
  std::byte* base() const { return base_; }
  std::byte* PageData(uint32_t unit) const { return base_ + size_t{unit} * kPageUnitBytes; }

  PagePoolStats stats() const;
  // used + free = capacity, reference counts and free lists agree. O(pages); for tests and debug builds.
  absl::Status CheckInvariants() const;

 private:
  // Implementation of the pool is this piece's own; the shape above is settled.
  PagePool() = default;
  int head_dim_ = 0;
  std::byte* base_ = nullptr;
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_POOL_H_
