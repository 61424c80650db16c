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

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvpool/page.h"
#include "kvpool/rung.h"

namespace whit {

class PagePool;

// For whom a page is kept. What no request holds is reclaimable.
enum class Holder : uint8_t {
  kRequest,
  kCache,  // finished requests' prefixes (prefix_index.h)
};

// A counted reference to one page; the page returns to the pool with its last reference. Copying
// shares the page.
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
  friend class PageTable;
  // Takes over a reference.
  PageRef(PagePool* pool, uint32_t unit) : pool_(pool), unit_(unit) {}
  PagePool* pool_ = nullptr;
  uint32_t unit_ = 0;
};

// Used, reclaimable and free bytes make up the capacity.
struct PagePoolStats {
  size_t capacity_bytes = 0;
  size_t used_bytes = 0;         // pages that requests hold, each once
  size_t reclaimable_bytes = 0;  // pages that the cache alone holds
  size_t free_bytes = 0;         // the rest, in whatever slab it lies
  size_t slabs = 0;
  size_t free_slabs = 0;  // of these, in the common store
  // Whoever holds them.
  std::array<size_t, kNumRungs> pages_by_rung{};
  std::array<size_t, kNumRungs> slabs_by_rung{};
  // Of the used bytes.
  std::array<size_t, kNumRungs> used_bytes_by_rung{};
  std::array<size_t, kNumRungs> used_pages_by_rung{};
  size_t reclaimable_pages = 0;
  // Blocks of PageTable::kForkTokens tokens that have left the ring of a table, each once however
  // many tables have it.
  int64_t settled_blocks = 0;
};

// Fixed capacity, allocated once. Pages of one rung come from slabs of that size class; a slab that
// becomes empty returns to the common store. Bookkeeping outside the capacity: four bytes a page.
//
// What fits. Let N_r pages be held at rung r, and let a slab hold P_r of them. Compaction brings
// the pages of each rung together in ceil(N_r / P_r) slabs. A page's footprint is its share of a
// slab, kSlabBytes / P_r rounded up. With X the sum of footprints in slabs,
//   sum_r ceil(N_r / P_r)  <=  sum_r (N_r + P_r - 1) / P_r  <  X + kNumRungs.
// So while X <= slabs - kNumRungs - 1 (usable_bytes), compacted pages leave a free slab at least,
// whatever the rungs: a page of any rung can be had, and one more for the moment in which a page is
// written anew. Hence bytes are promised in footprints, and fragmentation cannot break the promise.
//
// Threads: Allocate and PageRef belong to one thread (the engine's). Page *contents* may be read
// and written by worker threads while the owner waits for them. stats() may be called from any
// thread.
class PagePool {
 public:
  // Large enough that the rest behind a slab's last page is small at every rung.
  static constexpr size_t kSlabBytes = size_t{128} << 10;

  struct Options {
    size_t capacity_bytes = 0;  // rounded down to whole slabs, of which there is at least one
    int head_dim = 0;           // multiple of 16
  };
  // INVALID_ARGUMENT names the bound; RESOURCE_EXHAUSTED if the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<PagePool>> Create(const Options& options);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  static constexpr size_t PagesPerSlab(Rung rung, int head_dim) {
    return kSlabBytes / PageBytes(rung, head_dim);
  }
  // A page's bytes and its share of what the pages of its rung leave over in a slab.
  static constexpr size_t FootprintBytes(Rung rung, int head_dim) {
    const size_t pages = PagesPerSlab(rung, head_dim);
    return (kSlabBytes + pages - 1) / pages;
  }
  // The footprints that a pool of so many bytes can hold together in any mix of rungs, if it is
  // compacted when need be.
  static constexpr size_t UsableBytes(size_t capacity_bytes) {
    constexpr size_t kMovingRoom = kNumRungs + 1;  // slabs
    const size_t slabs = capacity_bytes / kSlabBytes;
    return slabs < kMovingRoom ? 0 : (slabs - kMovingRoom) * kSlabBytes;
  }

  // A zeroed page. RESOURCE_EXHAUSTED when no slab has room; never grows, never throws.
  absl::StatusOr<PageRef> Allocate(Rung rung);

  // Compaction: chooses at most `max_slabs` slabs, those with the fewest pages, whose pages have
  // room in the other slabs of their rungs; returns how many. Until EndCompaction these slabs give
  // out no pages, and PageTable::Evacuate moves theirs. By the pool's owner, while no table is
  // written to.
  size_t BeginCompaction(size_t max_slabs);
  void EndCompaction();

  int head_dim() const { return head_dim_; }
  // Where an entry's page lies: base() + entry.unit * kPageUnitBytes.
  std::byte* base() const { return base_; }
  std::byte* PageData(uint32_t unit) const { return base_ + size_t{unit} * kPageUnitBytes; }

  PagePoolStats stats() const;
  // used + free = capacity, reference counts and free lists agree. O(pages); for tests and debug
  // builds.
  absl::Status CheckInvariants() const;

 private:
  friend class PageRef;
  friend class PageTable;  // keeps bare units in its entries instead of 16-byte PageRefs

  struct References {
    uint16_t by_requests = 0;
    uint16_t by_cache = 0;
    int all() const { return by_requests + by_cache; }
    uint16_t& by(Holder holder) { return holder == Holder::kRequest ? by_requests : by_cache; }
  };

  // A slab holds pages of one rung, or lies in the common store.
  struct Slab {
    static constexpr uint32_t kNone = ~uint32_t{0};
    bool assigned = false;
    bool closed = false;  // its pages are being moved: it gives out none
    Rung rung = Rung::kFp16;
    uint16_t pages = 0;       // how many fit
    uint16_t used = 0;        // handed out
    uint16_t untouched = 0;   // pages from here on were never handed out since assignment
    uint16_t first_free = 0;  // list of returned pages: index + 1, 0 ends it; the link is the
                              // page's own first two bytes
    uint32_t next = kNone, previous = kNone;  // among the slabs of its rung that have room
    bool has_room() const { return !closed && used < pages; }
  };

  PagePool(const Options& options, std::byte* base, size_t num_slabs);

  // A zeroed page for a request's table.
  absl::StatusOr<uint32_t> AllocateUnit(Rung rung);
  void AddReference(uint32_t unit, Holder holder);
  void DropReference(uint32_t unit, Holder holder);
  int NumReferences(uint32_t unit);
  bool Shared(uint32_t unit) { return NumReferences(unit) > 1; }
  // Whether the page lies in a slab that compaction has chosen.
  bool MustMove(uint32_t unit) const { return compacting_ && closed_[SlabIndex(unit)] != 0; }
  // Keeps the first failure of a table whose lists grow on several threads.
  void RecordFailure(const absl::Status& failure, absl::Status* status);

  // Null if there is none. A page that a request holds now; its bytes are not cleared yet.
  std::byte* TakePage(Rung rung);

  Slab* SlabWithRoom(Rung rung) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LinkSlab(Slab& slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UnlinkSlab(Slab& slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  static size_t SlabIndex(uint32_t unit) { return size_t{unit} * kPageUnitBytes / kSlabBytes; }
  size_t PageIndex(size_t slab, uint32_t unit) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  References& ReferencesTo(size_t slab, size_t page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return references_[slab * stride_ + page];
  }

  const int head_dim_;
  std::byte* const base_;  // mapped, kSlabBytes * num_slabs_
  std::array<size_t, kNumRungs> page_bytes_{};
  size_t stride_ = 0;  // pages of the smallest rung in a slab
  const size_t num_slabs_;
  // Written by BeginCompaction and EndCompaction alone, while nothing else runs.
  bool compacting_ = false;
  std::vector<uint8_t> closed_;  // by slab: Slab::closed
  mutable absl::Mutex mutex_;
  std::vector<Slab> slabs_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_slabs_ ABSL_GUARDED_BY(mutex_);
  std::array<uint32_t, kNumRungs> slabs_with_room_ ABSL_GUARDED_BY(mutex_);  // heads of lists
  // Reference counts, [slab][page of the slab]. Zeroed memory from the system: only what is used
  // becomes resident.
  struct FreeDeleter {
    void operator()(References* p) const;
  };
  std::unique_ptr<References[], FreeDeleter> references_ ABSL_PT_GUARDED_BY(mutex_);
  std::array<size_t, kNumRungs> slabs_by_rung_ ABSL_GUARDED_BY(mutex_){};
  std::array<size_t, kNumRungs> used_pages_ ABSL_GUARDED_BY(mutex_){};
  std::array<size_t, kNumRungs> reclaimable_pages_ ABSL_GUARDED_BY(mutex_){};
  std::atomic<int64_t> settled_blocks_{0};
};

}  // namespace whit

#endif  // WHIT_KVPOOL_PAGE_POOL_H_
