#include "runtime/ops/amx_attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "runtime/ops/amx.h"
#include "runtime/ops/amx_vector.h"

namespace whit {
namespace {

static_assert(AmxAttention::kQueryTile == amx::kTileRows && kTileTokens == amx::kTileRows);

// 2^x for x <= 0, within 3e-6 of it; 0 below -100, so that nothing becomes subnormal, which is
// slow.
WHIT_AVX512 inline __m512 Exp2(__m512 x) {
  const __m512 rounded = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, rounded);
  // The polynomial of degree 4 with the least relative error on [-1/2, 1/2].
  __m512 y = _mm512_set1_ps(0.009570101f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.05591786f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.24024744f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.6931218f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.9999993f));
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-100.0f), _CMP_GE_OQ);
  return _mm512_maskz_scalef_ps(counts, y, rounded);
}

// Tiles 0 to 3 are sums, one for each of a few pages, 4 and 5 queries, 6 and 7 keys.
template <AmxRange::KeyKind kKind, int kSum>
void MultiplyPage(const uint16_t* high_keys, const uint16_t* low_keys) {
  amx::LoadTile<6>(high_keys, amx::kTileRowBytes);
  amx::MultiplyTiles<kSum, 4, 6>();
  if constexpr (kKind != AmxRange::kHighQueries) amx::MultiplyTiles<kSum, 5, 6>();
  if constexpr (kKind == AmxRange::kBothQueriesAndKeys) {
    amx::LoadTile<7>(low_keys, amx::kTileRowBytes);
    amx::MultiplyTiles<kSum, 4, 7>();
  }
}

// values[query][kBlocks * 16] = sum over pairs of pages of their weights and values; tiles 0 to 3
// are sums, one for each 16 dimensions.
template <int kBlocks>
void MultiplyBlocks(const AmxRange& range, size_t first_block, size_t pairs,
                    const uint16_t* weights, size_t weight_bytes, float* values, size_t stride) {
  amx::ZeroTile<0>();
  if constexpr (kBlocks > 1) amx::ZeroTile<1>();
  if constexpr (kBlocks > 2) amx::ZeroTile<2>();
  if constexpr (kBlocks > 3) amx::ZeroTile<3>();
  for (size_t pair = 0; pair < pairs; ++pair) {
    const auto tile = [&](size_t block) { return range.values(pair, first_block + block); };
    amx::LoadTile<4>(weights + pair * amx::kTileColumns, weight_bytes);
    amx::LoadTile<5>(tile(0), amx::kTileRowBytes);
    amx::MultiplyTiles<0, 4, 5>();
    if constexpr (kBlocks > 1) {
      amx::LoadTile<6>(tile(1), amx::kTileRowBytes);
      amx::MultiplyTiles<1, 4, 6>();
    }
    if constexpr (kBlocks > 2) {
      amx::LoadTile<7>(tile(2), amx::kTileRowBytes);
      amx::MultiplyTiles<2, 4, 7>();
    }
    if constexpr (kBlocks > 3) {
      amx::LoadTile<5>(tile(3), amx::kTileRowBytes);
      amx::MultiplyTiles<3, 4, 5>();
    }
  }
  const size_t bytes = stride * sizeof(float);
  amx::StoreTile<0>(values, bytes);
  if constexpr (kBlocks > 1) amx::StoreTile<1>(values + 16, bytes);
  if constexpr (kBlocks > 2) amx::StoreTile<2>(values + 32, bytes);
  if constexpr (kBlocks > 3) amx::StoreTile<3>(values + 48, bytes);
}

// Makes one query's scores of the range's first pages, of which it sees `visible` tokens, of its
// products with their keys; returns the largest.
WHIT_AVX512 float FinishScores(const AmxRange& range, int visible, size_t pages,
                               const float* mean_scores, float* scores) {
  __m512 even = _mm512_set1_ps(kNoScore), odd = even;
  const auto finish = [&](size_t page, __m512& largest) WHIT_AVX512 {
    float* of_page = scores + page * kTileTokens;
    const __m512 mean = _mm512_set1_ps(mean_scores[range.mean_of(page)]);
    __m512 s =
        _mm512_fmadd_ps(_mm512_load_ps(of_page), _mm512_load_ps(range.key_scales(page)), mean);
    s = _mm512_add_ps(s, _mm512_load_ps(range.biases(page)));
    largest = _mm512_max_ps(largest, s);
    _mm512_store_ps(of_page, s);
  };
  size_t page = 0;
  for (; page + 2 < pages; page += 2) {
    finish(page, even);
    finish(page + 1, odd);
  }
  // The last page may have tokens that the query does not see.
  if (page + 2 == pages) finish(page++, even);
  if (page < pages) {
    __m512 largest = odd;
    finish(page, largest);
    const int tokens = std::min(visible - range.tokens_before(page), kTileTokens);
    const auto hidden = static_cast<__mmask16>(0xFFFFu << tokens);
    const __m512 s = _mm512_mask_mov_ps(_mm512_load_ps(scores + page * kTileTokens), hidden,
                                        _mm512_set1_ps(kNoScore));
    _mm512_store_ps(scores + page * kTileTokens, s);
    odd = _mm512_max_ps(odd, s);
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(even, odd));
}

// Turns scores into p = 2^(score - max) and into weights, p * the value's scale; returns the sum of
// p. Weights may lie where the scores lie if p are not kept.
template <bool kKeepP>
WHIT_AVX512 float Exponentiate(const AmxRange& range, size_t pages, float max, float* scores,
                               uint16_t* weights) {
  const __m512 m = _mm512_set1_ps(max);
  __m512 sum = _mm512_setzero_ps();
  for (size_t page = 0; page < pages; ++page) {
    const size_t slot = page * kTileTokens;
    const __m512 p = Exp2(_mm512_sub_ps(_mm512_load_ps(scores + slot), m));
    sum = _mm512_add_ps(sum, p);
    if constexpr (kKeepP) _mm512_store_ps(scores + slot, p);
    StoreRounded(_mm512_mul_ps(p, _mm512_load_ps(range.value_scales(page))), weights + slot);
  }
  return _mm512_reduce_add_ps(sum);
}

}  // namespace

AmxAttention::AmxAttention(int head_dim) : range_(head_dim) {
  const size_t elements = kMaxQueries * range_.tile_dims();
  for (auto* queries : {&high_queries_, &low_queries_}) {
    *queries = hwy::AllocateAligned<uint16_t>(elements);
    std::fill_n(queries->get(), elements, uint16_t{0});
  }
}

WHIT_AVX512 void AmxAttention::SetQuery(int index, const float* rotated, float scale) {
  uint16_t* high = high_queries_.get() + index * range_.tile_dims();
  uint16_t* low = low_queries_.get() + index * range_.tile_dims();
  for (int dim = 0; dim < range_.head_dim(); dim += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(rotated + dim), _mm512_set1_ps(scale));
    StoreRounded(_mm512_sub_ps(x, StoreRounded(x, high + dim)), low + dim);
  }
}

void AmxAttention::Attend(int first, int count, const int* visible, size_t num_pages,
                          Partial* partials, RangeProbabilities* p, bool keep_p) {
  const amx::Tiles configured;
  const size_t offset = first * range_.tile_dims();
  const Queries queries = {.high = high_queries_.get() + offset,
                           .low = low_queries_.get() + offset,
                           .row_bytes = range_.tile_dims() * sizeof(uint16_t)};
  MultiplyMeans(queries);
  MultiplyKeys<AmxRange::kHighQueries>(queries, num_pages, p[0]);
  MultiplyKeys<AmxRange::kBothQueries>(queries, num_pages, p[0]);
  MultiplyKeys<AmxRange::kBothQueriesAndKeys>(queries, num_pages, p[0]);

  size_t pages[kQueryTile];  // that a query sees something of
  for (int i = 0; i < count; ++i) {
    pages[i] = range_.PagesBefore(visible[i], num_pages);
    partials[i].max = FinishScores(range_, visible[i], pages[i], mean_scores_[i], p[i]);
  }
  // Weights that are not kept apart take the place of the scores, which are read before.
  const size_t stride = keep_p ? kWeightStride : 2 * std::extent_v<RangeProbabilities>;
  uint16_t* weights = keep_p ? weights_[0] : reinterpret_cast<uint16_t*>(p[0]);
  const size_t pairs = (num_pages + 1) / 2;
  for (int i = 0; i < count; ++i) {
    uint16_t* row = weights + i * stride;
    partials[i].sum = keep_p ? Exponentiate<true>(range_, pages[i], partials[i].max, p[i], row)
                             : Exponentiate<false>(range_, pages[i], partials[i].max, p[i], row);
    std::fill(row + pages[i] * kTileTokens, row + 2 * pairs * kTileTokens, uint16_t{0});
    if (keep_p) std::fill(p[i] + pages[i] * kTileTokens, p[i] + num_pages * kTileTokens, 0.0f);
  }
  MultiplyValues(pairs, weights, stride * sizeof(uint16_t), partials[0].values,
                 partials[1].values - partials[0].values);
}

void AmxAttention::MultiplyMeans(const Queries& queries) {
  for (size_t block = 0; block * amx::kTileRows < range_.num_means(); ++block) {
    amx::ZeroTile<0>();
    for (size_t dim = 0; dim < range_.tile_dims(); dim += amx::kTileColumns) {
      amx::LoadTile<4>(queries.high + dim, queries.row_bytes);
      amx::LoadTile<5>(queries.low + dim, queries.row_bytes);
      MultiplyPage<AmxRange::kBothQueriesAndKeys, 0>(range_.high_means(block) + dim * kTileTokens,
                                                     range_.low_means(block) + dim * kTileTokens);
    }
    amx::StoreTile<0>(mean_scores_[0] + block * amx::kTileRows, sizeof(mean_scores_[0]));
  }
}

template <AmxRange::KeyKind kKind>
void AmxAttention::MultiplyKeys(const Queries& queries, size_t num_pages, float* scores) const {
  const absl::Span<const uint8_t> all = range_.pages_of(kKind);
  const absl::Span<const uint8_t> pages =
      all.first(std::lower_bound(all.begin(), all.end(), num_pages) - all.begin());
  constexpr size_t kAtOnce = 4;
  for (size_t n = 0; n < pages.size(); n += kAtOnce) {
    size_t page[kAtOnce];  // where there are fewer, the last again
    for (size_t i = 0; i < kAtOnce; ++i) page[i] = pages[std::min(n + i, pages.size() - 1)];
    amx::ZeroTile<0>();
    amx::ZeroTile<1>();
    amx::ZeroTile<2>();
    amx::ZeroTile<3>();
    for (size_t dim = 0; dim < range_.tile_dims(); dim += amx::kTileColumns) {
      const auto high = [&](size_t i) { return range_.high_keys(page[i]) + dim * kTileTokens; };
      const auto low = [&](size_t i) { return range_.low_keys(page[i]) + dim * kTileTokens; };
      amx::LoadTile<4>(queries.high + dim, queries.row_bytes);
      if constexpr (kKind != AmxRange::kHighQueries) {
        amx::LoadTile<5>(queries.low + dim, queries.row_bytes);
      }
      MultiplyPage<kKind, 0>(high(0), low(0));
      MultiplyPage<kKind, 1>(high(1), low(1));
      MultiplyPage<kKind, 2>(high(2), low(2));
      MultiplyPage<kKind, 3>(high(3), low(3));
    }
    constexpr size_t kBytes = sizeof(RangeProbabilities);
    amx::StoreTile<0>(scores + page[0] * kTileTokens, kBytes);
    amx::StoreTile<1>(scores + page[1] * kTileTokens, kBytes);
    amx::StoreTile<2>(scores + page[2] * kTileTokens, kBytes);
    amx::StoreTile<3>(scores + page[3] * kTileTokens, kBytes);
  }
}

void AmxAttention::MultiplyValues(size_t pairs, const uint16_t* weights, size_t weight_bytes,
                                  float* values, size_t stride) const {
  const size_t blocks = range_.head_dim() / 16;
  const auto multiply = [&]<int kBlocks>(size_t block) {
    MultiplyBlocks<kBlocks>(range_, block, pairs, weights, weight_bytes, values + block * 16,
                            stride);
  };
  size_t block = 0;
  for (; block + 4 <= blocks; block += 4) multiply.template operator()<4>(block);
  switch (blocks - block) {
    case 1:
      return multiply.template operator()<1>(block);
    case 2:
      return multiply.template operator()<2>(block);
    case 3:
      return multiply.template operator()<3>(block);
    default:
      return;
  }
}

}  // namespace whit

#endif  // __x86_64__
