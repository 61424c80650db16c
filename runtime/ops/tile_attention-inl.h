// A tile of queries against a range of pages, for each SIMD target. Included once per target.
#if defined(WHIT_RUNTIME_OPS_TILE_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WHIT_RUNTIME_OPS_TILE_ATTENTION_INL_H_
#undef WHIT_RUNTIME_OPS_TILE_ATTENTION_INL_H_
#else
#define WHIT_RUNTIME_OPS_TILE_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/types/span.h"
#include "hwy/highway.h"
#include "kvpool/page.h"
#include "runtime/ops/attention_range.h"
#include "runtime/ops/cpu_extension.h"
#include "runtime/ops/page_attention-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // as in quad_dot-inl.h
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace tile_attention {
using page_attention::AddPageValues;
using page_attention::Exponentiate;
using page_attention::MeanScore;
using page_attention::PageScores;
using page_attention::PageWeights;
using page_attention::PageWeightsOf;
using page_attention::ScoreTerms;

// Brings pages into the second-level cache.
HWY_INLINE void PrefetchBytes(const std::byte* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}
constexpr size_t kPagesAhead = 4;

// A third of what is next, a page of it with each page of a pass and the rest with the last. Pages
// of FP16 are long enough for hardware to see them coming, and too long to be fetched so early.
HWY_INLINE void PrefetchNext(const RangeView& range, size_t pass, size_t page) {
  const bool last = page + 1 == range.pages.size();
  const size_t end = last ? range.next.size() : std::min(page + 1, range.next.size());
  for (size_t i = page; i < end; ++i) {
    if (range.next[i].rung == Rung::kFp16) continue;
    const size_t lines = PageBytes(range.next[i].rung, range.head_dim) / 64;
    const size_t first = lines * pass / 3;
    PrefetchBytes(range.base + range.next[i].unit * kPageUnitBytes + first * 64,
                  (lines * (pass + 1) / 3 - first) * 64);
  }
}

// The range's pages, those of a rung together: what is done with a page depends on its rung, and
// the processor should see that coming.
struct PagesByRung {
  explicit PagesByRung(absl::Span<const PageEntry> pages) {
    std::array<uint8_t, kNumRungs> next = {};
    for (const PageEntry& page : pages) ++next[static_cast<size_t>(page.rung)];
    uint8_t first = 0;
    for (uint8_t& n : next) first += std::exchange(n, first);
    for (size_t j = 0; j < pages.size(); ++j) {
      order[next[static_cast<size_t>(pages[j].rung)]++] = static_cast<uint8_t>(j);
    }
  }
  uint8_t order[kRangePages];
};

// The scores of the means that the keys of a range's pages are relative to.
template <int kQueries>
struct MeanScores {
  MeanScores(const RangeView& range, const QueryTile& tile, float scale, int head_dim) {
    int blocks = 0;
    uint16_t block_of[kRangePages];
    for (size_t j = 0; j < range.pages.size(); ++j) {
      const uint16_t block = range.pages[j].mean_block;
      // Pages of a block lie near each other.
      int k = blocks - 1;
      while (k >= 0 && block_of[k] != block) --k;
      if (k < 0) {
        k = blocks++;
        block_of[k] = block;
        for (int i = 0; i < kQueries; ++i) {
          scores[k][i] = block == PageEntry::kNoMean
                             ? 0.0f
                             : scale * MeanScore(tile.rotated[i], range.mean(block), head_dim);
        }
      }
      of_page[j] = static_cast<uint8_t>(k);
    }
  }
  uint8_t of_page[kRangePages];
  float scores[kRangePages][kQueries];
};

// Three passes over the range's pages, each of which leaves the processor enough independent work:
// scores; probabilities and, for quantized values, integer weights; values.
template <CpuExtension kExtension, int kQueries, int kDim>
void AttendTile(const RangeView& range, const QueryTile& tile, Partial* partials,
                RangeProbabilities* p) {
  const int head_dim = kDim != 0 ? kDim : range.head_dim;
  const size_t num_pages = range.pages.size();
  const PagesByRung by_rung(range.pages);
  float* page_p[kQueries];
  const auto select = [&](size_t j) {
    for (int i = 0; i < kQueries; ++i) page_p[i] = p[i] + j * kTileTokens;
  };

  ScoreTerms<kQueries> terms;
  terms.scale = range.scale * kLog2E;
  for (int i = 0; i < kQueries; ++i) terms.unit[i] = tile.unit[i] * terms.scale;
  const MeanScores<kQueries> means(range, tile, terms.scale, head_dim);
  for (size_t n = 0; n < num_pages; ++n) {
    PrefetchNext(range, 0, n);
    if (n + kPagesAhead < num_pages) {
      const size_t ahead = by_rung.order[n + kPagesAhead];
      const Rung rung = range.pages[ahead].rung;
      const size_t bytes = PageBytes(rung, head_dim);
      // A page of FP16 comes in two parts, its values with the third pass.
      if (rung == Rung::kFp16) {
        PrefetchBytes(range.page_data(ahead), bytes / 2);
      } else if (!range.fetched) {
        PrefetchBytes(range.page_data(ahead), bytes);
      }
    }
    const size_t j = by_rung.order[n];
    for (int i = 0; i < kQueries; ++i) terms.of_mean[i] = means.scores[means.of_page[j]][i];
    select(j);
    PageScores<kExtension, kQueries, kDim>(range.page_data(j), range.pages[j].rung, head_dim, tile,
                                           terms, page_p);
  }
  int seen = range.tokens_before;
  for (size_t j = 0; j < num_pages; ++j) {
    const int tokens = range.pages[j].tokens;
    for (int i = 0; i < kQueries; ++i) {
      const int visible = std::max(0, std::min<int>(tokens, tile.visible[i] - seen));
      for (int t = visible; t < kTileTokens; ++t) p[i][j * kTileTokens + t] = kNoScore;
    }
    seen += tokens;
  }

  PageWeights weights[kRangePages][kQueries];
  float* values[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    Exponentiate(p[i], num_pages * kTileTokens, &partials[i].max, &partials[i].sum);
    values[i] = partials[i].values;
    std::memset(values[i], 0, head_dim * sizeof(float));
  }
  for (size_t n = 0; n < num_pages; ++n) {
    PrefetchNext(range, 1, n);
    const size_t j = by_rung.order[n];
    if (range.pages[j].rung == Rung::kFp16) continue;
    select(j);
    PageWeightsOf<kQueries>(range.page_data(j), range.pages[j].rung, head_dim, page_p, weights[j]);
  }

  for (size_t n = 0; n < num_pages; ++n) {
    PrefetchNext(range, 2, n);
    if (n + kPagesAhead < num_pages) {
      const size_t ahead = by_rung.order[n + kPagesAhead];
      if (range.pages[ahead].rung == Rung::kFp16) {
        const size_t half = PageBytes(Rung::kFp16, head_dim) / 2;
        PrefetchBytes(range.page_data(ahead) + half, half);
      }
    }
    const size_t j = by_rung.order[n];
    select(j);
    AddPageValues<kExtension, kQueries, kDim>(range.page_data(j), range.pages[j].rung, head_dim,
                                              page_p, weights[j], values);
  }
}

template <CpuExtension kExtension, int kDim>
HWY_INLINE void AttendTileOfDim(const RangeView& range, const QueryTile& tile, Partial* partials,
                                RangeProbabilities* p) {
  switch (tile.count) {
    case 1:
      return AttendTile<kExtension, 1, kDim>(range, tile, partials, p);
    case 2:
      return AttendTile<kExtension, 2, kDim>(range, tile, partials, p);
    case 3:
      return AttendTile<kExtension, 3, kDim>(range, tile, partials, p);
    default:
      return AttendTile<kExtension, 4, kDim>(range, tile, partials, p);
  }
}

}  // namespace tile_attention
}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#endif  // WHIT_RUNTIME_OPS_TILE_ATTENTION_INL_H_
