// KvRelief: makes room in the pool before each step, so that no step finds it full.
#ifndef WHIT_RUNTIME_ENGINE_KV_RELIEF_H_
#define WHIT_RUNTIME_ENGINE_KV_RELIEF_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/engine/kv_pressure.h"
#include "runtime/engine/kv_reservation.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// A running request's pages, and what the coming step adds to them.
struct KvHolder {
  PageTable* table = nullptr;
  const KvTerms* terms = nullptr;
  int step_tokens = 0;
};

// Why there is always room. The reservations of those who run add up to what is usable at most
// (admission), and with all decided tokens at their floors nobody holds, at any moment of the
// coming step, more than was reserved (ReservationBytes). So at the latest when no cached prefix is
// left and everything is at its floor, all footprints are within what is usable, also those to
// come; and then compaction finds a slab for each page (PagePool). Lowering gets that far in any
// case: it needs one page at a time on top of what is held, for which the moving room is enough.
//
// Threads: the engine's.
class KvRelief {
 public:
  // All outlive it; `lists`: layers times KV heads.
  KvRelief(PagePool& pool, ThreadPool& threads, int num_layers, int num_kv_heads)
      : pool_(pool), threads_(threads), num_layers_(num_layers), num_kv_heads_(num_kv_heads) {}

  // What of the pool is not a running request's own.
  struct Cache {
    absl::FunctionRef<bool()> evict;  // drops a prefix; false if none is left
    absl::FunctionRef<std::vector<PageTable*>()> tables;
  };
  // Sees to it that the step finds every page that it may take: drops cached prefixes, then has new
  // tokens land lower, then lowers pages. What must be is done however long it takes; beyond that,
  // a full pool is relieved by a few pages a step. Returns the rung that no token decided in the
  // step may exceed, but for requests whose floor is higher.
  Rung MakeRoom(absl::Span<const KvHolder> holders, const Cache& cache);

  const PressureState& state() const { return state_; }
  // Pages lowered so far, [from][to].
  using Demotions = std::array<std::array<int64_t, kNumRungs>, kNumRungs>;
  const Demotions& demotions() const { return demotions_; }

 private:
  struct Lowering {
    int list = 0;
    PageTable* table = nullptr;
    size_t page = 0;
    Rung from = Rung::kFp16, to = Rung::kFp16;
  };

  KvGrowth GrowthOfStep(absl::Span<const KvHolder> holders, Rung ceiling) const;
  bool Fits(const KvGrowth& growth) const;
  // Precision comes down by at most `max_pages` pages, and the ceiling with it where nothing is
  // above it any more. Returns how many there were; 0: all are at their floors.
  int64_t Lower(absl::Span<const KvHolder> holders, const Cache& cache, int64_t max_pages);
  // Of the lists from cursor_ on, the oldest pages above the ceiling.
  std::vector<Lowering> Select(absl::Span<const KvHolder> holders, int64_t max_pages);
  int64_t Execute(absl::Span<const Lowering> lowerings, absl::Span<PageTable* const> tables);
  // Gives slabs back to the common store; returns how many.
  size_t Compact(absl::Span<PageTable* const> tables, size_t max_slabs);

  PagePool& pool_;
  ThreadPool& threads_;
  const int num_layers_, num_kv_heads_;
  PressureState state_;
  int cursor_ = 0;  // the list whose turn it is
  Demotions demotions_{};
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_KV_RELIEF_H_
