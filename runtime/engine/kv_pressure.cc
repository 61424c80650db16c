#include "runtime/engine/kv_pressure.h"

#include <algorithm>
#include <cmath>

#include "kvpool/page_table.h"

namespace whit {
KvGrowth& KvGrowth::operator+=(const KvGrowth& other) {
  for (int i = 0; i < kNumRungs; ++i) {
    pages[i] += other.pages[i];
    pages_up_to[i] += other.pages_up_to[i];
  }
  return *this;
}

KvGrowth GrowthOf(const KvTerms& terms, const KvFill& fill, Rung ceiling, int lists) {
  KvGrowth growth;
  if (fill.step_tokens == 0) return growth;
  const int64_t end = fill.tokens + fill.step_tokens;
  if (terms.uniform) {
    growth.pages[static_cast<size_t>(terms.floor)] =
        lists * (PagesFor(end) - PagesFor(fill.tokens));
    return growth;
  }

  if (fill.tokens == 0) growth.pages[static_cast<size_t>(terms.ring.sink_rung)] += lists;
  // Behind the first page.
  const int64_t settled = std::max<int64_t>(fill.settled_tokens - kTileTokens, 0);
  const int64_t before = std::max<int64_t>(fill.tokens - kTileTokens, 0) - settled;
  const int64_t after = std::max<int64_t>(end - kTileTokens, 0) - settled;
  const int64_t most_in_ring = std::min(after, std::max(before, MaxRingTokensInPrompt(terms, end)));
  growth.pages[static_cast<size_t>(terms.ring.rung)] +=
      lists * (PagesFor(most_in_ring) - PagesFor(before));

  const int64_t stays = terms.ring.tokens_at(static_cast<int>(end));
  const int64_t settles = std::max<int64_t>(after - stays, 0) / kTileTokens * kTileTokens;
  if (settles == 0) return growth;
  // Each rung may open a page; but there are no more of them than the tokens can have.
  const int64_t sinks = fill.settled_tokens > 0 ? lists : 0;
  const int64_t pages =
      std::min(lists * MaxSettledPages(terms, settles),
               lists * MaxSettledPages(terms, settled + settles) - (fill.settled_pages - sinks));
  const Rung highest = std::max(terms.floor, std::min(ceiling, terms.dearest));
  growth.pages_up_to[static_cast<size_t>(highest)] += pages;
  return growth;
}

size_t FootprintBytes(const PagePoolStats& pool, const KvGrowth& growth, int head_dim) {
  size_t bytes = 0;
  for (int i = 0; i < kNumRungs; ++i) {
    bytes += (pool.pages_by_rung[i] + growth.pages[i] + growth.pages_up_to[i]) *
             PagePool::FootprintBytes(static_cast<Rung>(i), head_dim);
  }
  return bytes;
}

size_t SlabsInUse(const PagePoolStats& pool, const KvGrowth& growth, int head_dim) {
  // The worst that may become of the pages whose rung is open: each rung that gets any fills its
  // holes first, and its last new slab holds a single page.
  size_t slabs = 0;
  int64_t open_pages = 0;
  double new_slabs = 0;
  bool may_get_some = false;
  for (int i = kNumRungs - 1; i >= 0; --i) {
    const auto per_slab =
        static_cast<int64_t>(PagePool::PagesPerSlab(static_cast<Rung>(i), head_dim));
    const auto pages = static_cast<int64_t>(pool.pages_by_rung[i]) + growth.pages[i];
    const int64_t taken = std::max<int64_t>(static_cast<int64_t>(pool.slabs_by_rung[i]),
                                            (pages + per_slab - 1) / per_slab);
    slabs += taken;
    open_pages += growth.pages_up_to[i];
    may_get_some |= growth.pages_up_to[i] > 0;
    if (!may_get_some) continue;
    const int64_t holes = taken * per_slab - pages;
    new_slabs +=
        static_cast<double>(growth.pages_up_to[i] + std::max<int64_t>(per_slab - 1 - holes, 0)) /
        static_cast<double>(per_slab);
  }
  constexpr double kRounding = 1e-9;
  return slabs + std::min(open_pages, static_cast<int64_t>(std::floor(new_slabs + kRounding)));
}

PressureState UpdatePressure(PressureState state, size_t footprint_bytes, size_t usable_bytes,
                             int head_dim) {
  const auto used = static_cast<double>(footprint_bytes);
  const auto usable = static_cast<double>(usable_bytes);
  if (used > kRelieveAbove * usable) state.relieving = true;
  if (used <= kRelieveUntil * usable) state.relieving = false;
  while (state.ceiling < Rung::kFp16) {
    const auto next = static_cast<Rung>(static_cast<int>(state.ceiling) + 1);
    const double growth = static_cast<double>(PageBytes(next, head_dim)) /
                          static_cast<double>(PageBytes(state.lowered_to, head_dim));
    if (used * growth > kRelieveUntil * usable) break;
    state.ceiling = next;
  }
  return state;
}

Rung LowerCeiling(Rung ceiling, Rung lowest_floor) {
  if (ceiling <= lowest_floor) return lowest_floor;
  return static_cast<Rung>(static_cast<int>(ceiling) - 1);
}

int64_t LoweringBudget(int step_tokens) { return 64 + 16 * int64_t{step_tokens}; }

}  // namespace whit
