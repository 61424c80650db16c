#include "runtime/engine/kv_relief.h"

#include <algorithm>

namespace whit {
namespace {

// When the promise is at stake: pages between two looks at whether it is kept.
constexpr int64_t kUrgentPages = 1024;
// Of a list's pages that are to come down, one in so many does so when it is the list's turn: short
// sequences lose no faster than long ones.
constexpr size_t kShareOfList = 8;
// More slabs than are missing: compaction looks at every table, so it should not be needed often.
constexpr size_t kSpareSlabs = 4;

Rung LowestFloor(absl::Span<const KvHolder> holders) {
  Rung lowest = Rung::kFp16;
  for (const KvHolder& holder : holders) lowest = std::min(lowest, holder.terms->floor);
  return lowest;
}

std::vector<PageTable*> AllTables(absl::Span<const KvHolder> holders,
                                  const KvRelief::Cache& cache) {
  std::vector<PageTable*> tables = cache.tables();
  for (const KvHolder& holder : holders) tables.push_back(holder.table);
  return tables;
}

}  // namespace

Rung KvRelief::MakeRoom(absl::Span<const KvHolder> holders, const Cache& cache) {
  int step_tokens = 0;
  for (const KvHolder& holder : holders) step_tokens += holder.step_tokens;
  const Rung lowest_floor = LowestFloor(holders);
  const size_t usable = PagePool::UsableBytes(pool_.stats().capacity_bytes);
  const auto update = [&] {
    const int head_dim = pool_.head_dim();
    state_ = UpdatePressure(state_, FootprintBytes(pool_.stats(), {}, head_dim), usable, head_dim);
    return state_.relieving;
  };
  // A full pool, whatever this step takes.
  while (update() && cache.evict()) {
  }
  if (state_.relieving) Lower(holders, cache, LoweringBudget(step_tokens));

  Rung ceiling = state_.ceiling;
  KvGrowth growth = GrowthOfStep(holders, ceiling);
  while (!Fits(growth)) {
    if (cache.evict()) {
      growth = GrowthOfStep(holders, ceiling);  // fewer pages are shared
    } else if (ceiling > lowest_floor) {
      ceiling = LowerCeiling(ceiling, lowest_floor);
      growth = GrowthOfStep(holders, ceiling);
    } else if (Lower(holders, cache, kUrgentPages) == 0) {
      break;  // reservations do not hold: a defect, which the tables' status will show
    }
  }
  PagePoolStats pool = pool_.stats();
  for (size_t slabs; (slabs = SlabsInUse(pool, growth, pool_.head_dim())) > pool.slabs;
       pool = pool_.stats()) {
    if (Compact(AllTables(holders, cache), slabs - pool.slabs + kSpareSlabs) == 0) break;
  }
  return ceiling;
}

KvGrowth KvRelief::GrowthOfStep(absl::Span<const KvHolder> holders, Rung ceiling) const {
  KvGrowth growth;
  SharedPageCounts shared;
  for (const KvHolder& holder : holders) {
    const PageTable& table = *holder.table;
    const KvGrowth own = GrowthOf(*holder.terms,
                                  {.tokens = table.num_tokens(),
                                   .settled_tokens = table.num_settled_tokens(),
                                   .settled_pages = table.num_settled_pages(),
                                   .step_tokens = holder.step_tokens},
                                  ceiling, num_layers_ * num_kv_heads_);
    growth += own;
    const bool settles = own.pages_up_to != decltype(own.pages_up_to){};
    if (settles) table.CountSharedOpenPages(&shared);
  }
  // The last one to hold a page writes to it as it is.
  for (const auto& [unit, page] : shared) {
    growth.pages[static_cast<size_t>(page.rung)] += std::min(page.copies, page.references - 1);
  }
  return growth;
}

bool KvRelief::Fits(const KvGrowth& growth) const {
  const PagePoolStats pool = pool_.stats();
  return FootprintBytes(pool, growth, pool_.head_dim()) <=
         PagePool::UsableBytes(pool.capacity_bytes);
}

int64_t KvRelief::Lower(absl::Span<const KvHolder> holders, const Cache& cache, int64_t max_pages) {
  const Rung lowest_floor = LowestFloor(holders);
  const std::vector<PageTable*> tables = AllTables(holders, cache);
  int64_t lowered = 0;
  while (lowered < max_pages) {
    const std::vector<Lowering> lowerings = Select(holders, max_pages - lowered);
    if (lowerings.empty()) {
      if (state_.ceiling <= lowest_floor) break;
      state_.ceiling = state_.lowered_to = LowerCeiling(state_.ceiling, lowest_floor);
      continue;
    }
    const int64_t done = Execute(lowerings, tables);
    lowered += done;
    if (done == static_cast<int64_t>(lowerings.size())) continue;
    // Some found no slab: what was lowered has left holes in others.
    if (Compact(tables, kSpareSlabs) == 0 && done == 0) break;
  }
  return lowered;
}

std::vector<KvRelief::Lowering> KvRelief::Select(absl::Span<const KvHolder> holders,
                                                 int64_t max_pages) {
  const int lists = num_layers_ * num_kv_heads_;
  std::vector<Lowering> selected;
  std::vector<size_t> above;
  for (int turn = 0; turn < lists && static_cast<int64_t>(selected.size()) < max_pages; ++turn) {
    const int list = cursor_;
    cursor_ = (cursor_ + 1) % lists;
    const int layer = list / num_kv_heads_, kv_head = list % num_kv_heads_;
    for (const KvHolder& holder : holders) {
      const Rung to = std::max(state_.ceiling, holder.terms->floor);
      const absl::Span<const PageEntry> pages = holder.table->pages(layer, kv_head);
      const int settled = holder.table->num_settled_pages(layer, kv_head);
      above.clear();
      for (int i = 1; i < settled; ++i) {
        if (pages[i].rung > to) above.push_back(i);
      }
      const size_t share = (above.size() + kShareOfList - 1) / kShareOfList;
      for (size_t i = 0; i < share; ++i) {
        selected.push_back({.list = list,
                            .table = holder.table,
                            .page = above[i],
                            .from = pages[above[i]].rung,
                            .to = to});
      }
    }
  }
  return selected;
}

int64_t KvRelief::Execute(absl::Span<const Lowering> lowerings,
                          absl::Span<PageTable* const> tables) {
  // A list is one thread's, because those who share a page have it in the same list.
  std::vector<size_t> begins;
  for (size_t i = 0; i < lowerings.size(); ++i) {
    if (i == 0 || lowerings[i].list != lowerings[i - 1].list) begins.push_back(i);
  }
  begins.push_back(lowerings.size());
  enum Outcome : uint8_t { kNoRoom, kAlreadyLow, kLowered };
  std::vector<Outcome> outcomes(lowerings.size(), kNoRoom);
  threads_.ParallelFor(begins.size() - 1, 1, [&](size_t begin, size_t end, int) {
    for (size_t i = begins[begin]; i < begins[end]; ++i) {
      const Lowering& lowering = lowerings[i];
      const int layer = lowering.list / num_kv_heads_, kv_head = lowering.list % num_kv_heads_;
      // One that was selected for two who share it has come down with the first.
      if (lowering.table->pages(layer, kv_head)[lowering.page].rung <= lowering.to) {
        outcomes[i] = kAlreadyLow;
      } else if (lowering.table->Demote(layer, kv_head, lowering.page, lowering.to, tables)) {
        outcomes[i] = kLowered;
      }
    }
  });
  int64_t count = 0;
  for (size_t i = 0; i < lowerings.size(); ++i) {
    if (outcomes[i] == kNoRoom) continue;
    ++count;
    if (outcomes[i] == kAlreadyLow) continue;
    ++demotions_[static_cast<size_t>(lowerings[i].from)][static_cast<size_t>(lowerings[i].to)];
  }
  return count;
}

size_t KvRelief::Compact(absl::Span<PageTable* const> tables, size_t max_slabs) {
  const size_t free_before = pool_.stats().free_slabs;
  if (pool_.BeginCompaction(max_slabs) == 0) return 0;
  threads_.ParallelFor(num_layers_ * num_kv_heads_, 1, [&](size_t begin, size_t end, int) {
    for (size_t list = begin; list < end; ++list) {
      for (PageTable* table : tables) {
        table->Evacuate(static_cast<int>(list) / num_kv_heads_,
                        static_cast<int>(list) % num_kv_heads_, tables);
      }
    }
  });
  pool_.EndCompaction();
  return pool_.stats().free_slabs - free_before;
}

}  // namespace whit
