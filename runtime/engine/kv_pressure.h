// What to do about a pool that fills up: how much the next step may take, whether the slabs have
// room for it, and how far everybody's precision is to come down. Pure functions over snapshots;
// kv_relief acts on them.
//
// Whatever the pressure, a page comes down to the ceiling: one rung for all requests alike, and
// each request's floor at least. So requests with the same floor lose alike. The rung itself says
// which pages matter least. All tokens were decided at the same price of a byte, so wherever they
// are, one rung less loses about as much a byte; and the loss is the surer to be small the higher
// the rung, whose rounding error is a hundredth of the next one's (controller/rung_choice). Within
// a rung, the oldest tokens come first: fewer queries are left that attend to them.
#ifndef WHIT_RUNTIME_ENGINE_KV_PRESSURE_H_
#define WHIT_RUNTIME_ENGINE_KV_PRESSURE_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvpool/page_pool.h"
#include "kvpool/rung.h"
#include "runtime/engine/kv_reservation.h"

namespace whit {

// What is known of a sequence before a step.
struct KvFill {
  int tokens = 0;
  int settled_tokens = 0;     // that have left the ring, the first page's among them
  int64_t settled_pages = 0;  // over all lists
  int step_tokens = 0;        // to be appended in the step
};

// Pages that a step takes at most, on top of what is held.
struct KvGrowth {
  // At a rung that is known: rings, first pages, copies of shared pages.
  std::array<int64_t, kNumRungs> pages{};
  // At this rung or a lower one.
  std::array<int64_t, kNumRungs> pages_up_to{};

  KvGrowth& operator+=(const KvGrowth& other);
};

// `lists`: layers times KV heads. The tokens that are decided get `ceiling` at most, or the floor
// if that is higher.
KvGrowth GrowthOf(const KvTerms& terms, const KvFill& fill, Rung ceiling, int lists);

// Footprints of all pages in the pool, whoever holds them, and of those that come on top.
size_t FootprintBytes(const PagePoolStats& pool, const KvGrowth& growth, int head_dim);

// How many slabs will be in use at most when the pages come on top, as the pages lie now. Does not
// exceed the pool's slabs if the pool is compacted and all footprints are within
// PagePool::UsableBytes.
size_t SlabsInUse(const PagePoolStats& pool, const KvGrowth& growth, int head_dim);

// Where the pool's precision stands.
struct PressureState {
  // Everything above is lowered to it, and nothing above it is given any more.
  Rung ceiling = Rung::kFp16;
  Rung lowered_to = Rung::kFp16;  // the ceiling when it last came down
  bool relieving = false;
};
// Precision comes down from when footprints exceed the one share of what is usable until they are
// within the other. The ceiling rises to a rung once all that is held, if it were larger by as much
// as that rung is than the one it was lowered to, would be within the latter: so it stays while
// there is as much to hold, and who comes later gets no more than who was lowered.
inline constexpr double kRelieveAbove = 15.0 / 16;
inline constexpr double kRelieveUntil = 7.0 / 8;
PressureState UpdatePressure(PressureState state, size_t footprint_bytes, size_t usable_bytes,
                             int head_dim);

// The next rung down, not below the floor that is lowest among those who run.
Rung LowerCeiling(Rung ceiling, Rung lowest_floor);

// About how many pages may be lowered beside a step of so many tokens. A page takes some 5 us of a
// core (head_dim 64, Zen 4), so that is far from making a step 1.3 times as long: a token of 30
// layers and 3 KV heads brings 6 pages along and has 16 lowered, in less than 0.1 ms.
int64_t LoweringBudget(int step_tokens);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_KV_PRESSURE_H_
