#include "runtime/ops/amx_range.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "kvpool/page.h"
#include "runtime/ops/amx.h"
#include "runtime/ops/amx_vector.h"

namespace whit {
namespace {

constexpr size_t kRowBytes = QuantizedPageLayout::kRowBytes;
constexpr size_t kPagesAhead = 4;

WHIT_AVX512 inline __m512i LoadRow(const std::byte* row) { return _mm512_loadu_si512(row); }

WHIT_AVX512 inline __m512 LoadHalves(const std::byte* base, size_t index) {
  return _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(base + index * sizeof(uint16_t))));
}

WHIT_AVX512 inline void StorePairs(uint16_t* pairs, size_t pair, __m512i values) {
  _mm512_store_si512(pairs + pair * 2 * kTileTokens, values);
}

// Turns lanes of four codes of kBits bits, each in a byte of its own, into codes less their centre.
template <int kBits>
class QuadDecoder {
 public:
  // `bit`: of its byte at which a code begins.
  WHIT_AVX512 explicit QuadDecoder(int bit) {
    for (int byte = 0; byte < 4; ++byte) {
      turns_[byte] = _mm512_set1_epi32((8 * byte + bit - kCodeBit) & 31);
    }
  }
  // Stores codes 0 and 1, and 2 and 3, as pairs of bfloat16.
  WHIT_AVX512 void Store(__m512i packed, uint16_t* pairs, size_t pair) const {
    StorePairs(pairs, pair, Pair(Code(packed, 0), Code(packed, 1)));
    StorePairs(pairs, pair + 1, Pair(Code(packed, 2), Code(packed, 3)));
  }

 private:
  static constexpr int kMaxCode = (1 << kBits) - 1;
  // In the mantissa of 2^15 this bit is worth 1.
  static constexpr int kCodeBit = 8;
  static constexpr int kExponent = 0x47000000;

  WHIT_AVX512 __m512 Code(__m512i packed, int byte) const {
    constexpr int kAndOr = 0xEA;  // (a & b) | c
    const __m512i code = _mm512_ternarylogic_epi32(_mm512_rorv_epi32(packed, turns_[byte]),
                                                   _mm512_set1_epi32(kMaxCode << kCodeBit),
                                                   _mm512_set1_epi32(kExponent), kAndOr);
    return _mm512_sub_ps(_mm512_castsi512_ps(code), _mm512_set1_ps(0x1p15f + 0.5f * kMaxCode));
  }
  // Exact values, `even` in the lower halves.
  WHIT_AVX512 static __m512i Pair(__m512 even, __m512 odd) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(_mm512_castps_si512(even), 16),
                                   _mm512_castps_si512(odd));
  }

  __m512i turns_[4];
};

template <int kBits>
WHIT_AVX512 void DecodeQuantizedKeys(const std::byte* codes, int head_dim, uint16_t* pairs) {
  const size_t rows = QuantizedPageLayout::KeyRows(head_dim, kBits);
  for (int part = 0; part < 8 / kBits; ++part) {
    const QuadDecoder<kBits> decoder(part * kBits);
    for (size_t row = 0; row < rows; ++row) {
      decoder.Store(LoadRow(codes + row * kRowBytes), pairs, 2 * (part * rows + row));
    }
  }
}

WHIT_AVX512 void DecodeFp16Keys(const std::byte* keys, int head_dim, uint16_t* high,
                                uint16_t* low) {
  for (int pair = 0; pair < head_dim / 2; ++pair) {
    const SplitPairs split = Split(LoadHalves(keys, 2 * pair * kTileTokens),
                                   LoadHalves(keys, (2 * pair + 1) * kTileTokens));
    StorePairs(high, pair, split.high);
    StorePairs(low, pair, split.low);
  }
}

constexpr size_t kPairsOfPage = kTileTokens / 2;

template <int kBits>
WHIT_AVX512 void DecodeQuantizedValues(const std::byte* codes, int head_dim, uint16_t* tiles) {
  constexpr size_t kPlanes = QuantizedPageLayout::ValuePlanes(kBits);
  constexpr size_t kParts = 4 / kPlanes;
  for (size_t part = 0; part < kParts; ++part) {
    const QuadDecoder<kBits> decoder(static_cast<int>(part) * kBits);
    for (size_t block = 0; block < static_cast<size_t>(head_dim) / 16; ++block) {
      for (size_t plane = 0; plane < kPlanes; ++plane) {
        decoder.Store(LoadRow(codes + (block * kPlanes + plane) * kRowBytes),
                      tiles + block * amx::kTileElements, 2 * (part * kPlanes + plane));
      }
    }
  }
}

WHIT_AVX512 void DecodeFp16Values(const std::byte* values, int head_dim, uint16_t* tiles) {
  for (int dim = 0; dim < head_dim; dim += 16) {
    uint16_t* tile = tiles + dim / 16 * amx::kTileElements;
    for (size_t pair = 0; pair < kPairsOfPage; ++pair) {
      StorePairs(tile, pair,
                 RoundPairs(LoadHalves(values, 2 * pair * head_dim + dim),
                            LoadHalves(values, (2 * pair + 1) * head_dim + dim)));
    }
  }
}

// One token, or mean, of a tile of keys.
WHIT_AVX512 void StoreColumn(const float* key, int head_dim, size_t column, uint16_t* high,
                             uint16_t* low) {
  for (int dim = 0; dim < head_dim; dim += 16) {
    alignas(32) uint16_t rounded[16], rest[16];
    const __m512 x = _mm512_loadu_ps(key + dim);
    StoreRounded(_mm512_sub_ps(x, StoreRounded(x, rounded)), rest);
    for (size_t i = 0; i < 16; i += 2) {
      const size_t pair = ((dim + i) / 2 * kTileTokens + column) * 2;
      std::copy_n(rounded + i, 2, high + pair);
      std::copy_n(rest + i, 2, low + pair);
    }
  }
}

WHIT_AVX512 void StoreScales(const std::byte* scales, float* to) {
  _mm512_store_ps(to, LoadHalves(scales, 0));
}

void Prefetch(const std::byte* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 3);
}

}  // namespace

AmxRange::AmxRange(int head_dim)
    : head_dim_(head_dim),
      tile_dims_((head_dim + amx::kTileColumns - 1) / amx::kTileColumns * amx::kTileColumns) {
  const auto allocate = [](hwy::AlignedFreeUniquePtr<uint16_t[]>& memory, size_t elements) {
    memory = hwy::AllocateAligned<uint16_t>(elements);
    std::fill_n(memory.get(), elements, 0);  // dimensions between head_dim and tile_dims stay 0
  };
  allocate(high_keys_, kRangePages * page_elements());
  allocate(low_keys_, kRangePages * page_elements());
  allocate(values_, size_t{kRangePages} * kTileTokens * head_dim);
  allocate(high_means_, kRangePages / kTileTokens * page_elements());
  allocate(low_means_, kRangePages / kTileTokens * page_elements());
}

void AmxRange::Decode(const RangeView& range) {
  const size_t num_pages = range.pages.size();
  std::fill_n(num_by_kind_, kNumKeyKinds, size_t{0});
  int tokens = range.tokens_before;
  for (size_t j = 0; j < num_pages; ++j) {
    if (const size_t ahead = j + kPagesAhead; ahead < num_pages) {
      Prefetch(range.page_data(ahead), PageBytes(range.pages[ahead].rung, head_dim_));
    }
    const PageEntry& page = range.pages[j];
    tokens_before_[j] = tokens;
    tokens += page.tokens;
    std::fill_n(biases_[j], kTileTokens, 0.0f);
    std::fill(biases_[j] + page.tokens, biases_[j] + kTileTokens, kNoScore);
    DecodeKeys(range.page_data(j), page.rung, j);
    DecodeValues(range.page_data(j), page.rung, j);
  }
  if (num_pages % 2 == 1) ClearValues(num_pages);
  CollectMeans(range);
}

void AmxRange::DecodeKeys(const std::byte* page, Rung rung, size_t index) {
  uint16_t* high = high_keys_.get() + index * page_elements();
  KeyKind kind = kHighQueries;
  switch (KeyBits(rung)) {
    case 2:
      DecodeQuantizedKeys<2>(page, head_dim_, high);
      break;
    case 4:
      DecodeQuantizedKeys<4>(page, head_dim_, high);
      break;
    case 8:
      DecodeQuantizedKeys<8>(page, head_dim_, high);
      kind = kBothQueries;
      break;
    default:
      DecodeFp16Keys(page + Fp16PageLayout::KeyOffset(head_dim_), head_dim_, high,
                     low_keys_.get() + index * page_elements());
      kind = kBothQueriesAndKeys;
  }
  by_kind_[kind][num_by_kind_[kind]++] = static_cast<uint8_t>(index);
  float* scales = key_scales_[index];
  if (kind == kBothQueriesAndKeys) {
    std::fill_n(scales, kTileTokens, 1.0f);
  } else {
    StoreScales(page + QuantizedPageLayout(head_dim_, KeyBits(rung), ValueBits(rung)).key_scales,
                scales);
  }
}

void AmxRange::DecodeValues(const std::byte* page, Rung rung, size_t index) {
  uint16_t* tiles = values_of(index);
  const QuantizedPageLayout layout(head_dim_, KeyBits(rung), ValueBits(rung));
  const std::byte* codes = page + layout.value_codes;
  float* scales = value_scales_[index];
  switch (ValueBits(rung)) {
    case 2:
      DecodeQuantizedValues<2>(codes, head_dim_, tiles);
      break;
    case 4:
      DecodeQuantizedValues<4>(codes, head_dim_, tiles);
      break;
    case 8:
      DecodeQuantizedValues<8>(codes, head_dim_, tiles);
      break;
    default:
      DecodeFp16Values(page + Fp16PageLayout::ValueOffset(head_dim_), head_dim_, tiles);
      std::fill_n(scales, kTileTokens, 1.0f);
      return;
  }
  StoreScales(page + layout.value_scales, scales);
}

void AmxRange::ClearValues(size_t index) {
  uint16_t* tiles = values_of(index);
  for (int dim = 0; dim < head_dim_; dim += 16, tiles += amx::kTileElements) {
    std::fill_n(tiles, amx::kTileElements / 2, uint16_t{0});
  }
}

void AmxRange::CollectMeans(const RangeView& range) {
  num_means_ = 0;
  uint16_t block_of[kRangePages];
  for (size_t j = 0; j < range.pages.size(); ++j) {
    const uint16_t block = range.pages[j].mean_block;
    if (block == PageEntry::kNoMean || range.pages[j].rung == Rung::kFp16) {
      mean_of_[j] = kNoMean;
      continue;
    }
    const uint16_t* found = std::find(block_of, block_of + num_means_, block);
    mean_of_[j] = static_cast<uint8_t>(found - block_of);
    if (found < block_of + num_means_) continue;
    const float* mean = range.mean(block);
    const size_t column = num_means_ % kTileTokens;
    uint16_t* high = high_means_.get() + num_means_ / kTileTokens * page_elements();
    uint16_t* low = low_means_.get() + num_means_ / kTileTokens * page_elements();
    StoreColumn(mean, head_dim_, column, high, low);
    block_of[num_means_++] = block;
  }
}

}  // namespace whit

#endif  // __x86_64__
