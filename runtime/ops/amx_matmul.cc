#include "runtime/ops/amx_matmul.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "runtime/ops/amx.h"
#include "runtime/ops/amx_vector.h"
#include "runtime/ops/packed_matrix.h"

namespace whit {
namespace {

static_assert(kPanelRows == amx::kTileRows && kGroupColumns == amx::kTileColumns,
              "a panel's group is a tile");

// A panel's groups that are unpacked at once: those of two panels stay in the second-level cache.
constexpr size_t kGroupsAtOnce = 48;

// How far ahead of unpacking a panel's groups are fetched; panels follow each other in memory.
constexpr size_t kPrefetchBytes = 16384;

// [group][16 pairs of columns][16 rows of the panel][2], bfloat16.
using UnpackedPanel = uint16_t[kGroupsAtOnce * amx::kTileElements];

WHIT_AVX512 inline __m512 LoadScales(const std::byte* scales, size_t set, bool f32) {
  const std::byte* from = scales + set * kPanelRows * (f32 ? 4 : 2);
  if (f32) return _mm512_loadu_ps(from);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// 1 + code / 16 of the 4-bit codes at bit kBit of each lane.
template <int kBit>
WHIT_AVX512 inline __m512 U4Codes(__m512i packed) {
  constexpr int kMantissaBit = 19;  // the first of four
  __m512i codes;
  if constexpr (kBit <= kMantissaBit) {
    codes = _mm512_slli_epi32(packed, kMantissaBit - kBit);
  } else {
    codes = _mm512_srli_epi32(packed, kBit - kMantissaBit);
  }
  constexpr int kAndOr = 0xEA;  // (a & b) | c
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      codes, _mm512_set1_epi32(0xF << kMantissaBit), _mm512_set1_epi32(0x3F800000), kAndOr));
}

template <int kByte>
WHIT_AVX512 inline __m512 S8Codes(__m512i packed) {
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(packed, 24 - 8 * kByte), 24));
}

// One group as a tile.
template <WeightFormat kFormat>
WHIT_AVX512 inline void UnpackGroup(const std::byte* group, uint16_t* tile) {
  constexpr GroupLayout kLayout = GroupLayout::Of(kFormat);
  const std::byte* scales = group + kLayout.codes;
  const auto store = [tile](size_t pair, __m512i values)
                         WHIT_AVX512 { _mm512_store_si512(tile + pair * 2 * kPanelRows, values); };
  __m512 d = LoadScales(scales, 0, kLayout.f32_scales);
  __m512 m = _mm512_setzero_ps();
  if constexpr (kLayout.minimums) m = LoadScales(scales, kLayout.scale_sets, kLayout.f32_scales);
  if constexpr (HasU4Codes(kFormat)) {
    d = _mm512_mul_ps(d, _mm512_set1_ps(16.0f));
    // Less what the 1 in 1 + code / 16 brings; a code without minimum stands for code - 8.
    m = kLayout.minimums ? _mm512_sub_ps(m, d) : _mm512_mul_ps(d, _mm512_set1_ps(-1.5f));
    for (size_t i = 0; i < 4; ++i) {
      const __m512i packed = _mm512_loadu_si512(group + i * 64);
      const auto pair = [&]<int kBit>() WHIT_AVX512 {
        return RoundPairs(_mm512_fmadd_ps(U4Codes<kBit>(packed), d, m),
                          _mm512_fmadd_ps(U4Codes<kBit + 8>(packed), d, m));
      };
      store(2 * i, pair.template operator()<0>());
      store(2 * i + 1, pair.template operator()<16>());
      store(8 + 2 * i, pair.template operator()<4>());
      store(8 + 2 * i + 1, pair.template operator()<20>());
    }
  } else {
    for (size_t i = 0; i < 8; ++i) {
      if (kLayout.scale_sets == 2 && i == 4) d = LoadScales(scales, 1, kLayout.f32_scales);
      const __m512i packed = _mm512_loadu_si512(group + i * 64);
      const auto pair = [&]<int kByte>() WHIT_AVX512 {
        return RoundPairs(_mm512_fmadd_ps(S8Codes<kByte>(packed), d, m),
                          _mm512_fmadd_ps(S8Codes<kByte + 1>(packed), d, m));
      };
      store(2 * i, pair.template operator()<0>());
      store(2 * i + 1, pair.template operator()<2>());
    }
  }
}

template <WeightFormat kFormat>
WHIT_AVX512 void UnpackGroups(const std::byte* group, size_t count, uint16_t* tiles) {
  constexpr size_t kBytes = GroupLayout::Of(kFormat).bytes;
  for (size_t g = 0; g < count; ++g, group += kBytes) {
    for (size_t line = 0; line < kBytes; line += 64) {
      __builtin_prefetch(group + kPrefetchBytes + line);
    }
    UnpackGroup<kFormat>(group, tiles + g * amx::kTileElements);
  }
}

void Unpack(const PackedMatrix& w, size_t panel, size_t first_group, size_t count,
            uint16_t* tiles) {
  const std::byte* group = w.group(panel, first_group);
  switch (w.format) {
    case WeightFormat::kU4:
      return UnpackGroups<WeightFormat::kU4>(group, count, tiles);
    case WeightFormat::kU4Min:
      return UnpackGroups<WeightFormat::kU4Min>(group, count, tiles);
    case WeightFormat::kU4MinF32:
      return UnpackGroups<WeightFormat::kU4MinF32>(group, count, tiles);
    case WeightFormat::kS8:
      return UnpackGroups<WeightFormat::kS8>(group, count, tiles);
    case WeightFormat::kS8Min:
      return UnpackGroups<WeightFormat::kS8Min>(group, count, tiles);
    case WeightFormat::kS8MinF32:
      return UnpackGroups<WeightFormat::kS8MinF32>(group, count, tiles);
    case WeightFormat::kS8HalfF32:
      return UnpackGroups<WeightFormat::kS8HalfF32>(group, count, tiles);
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
    case WeightFormat::kF32:
      return;  // multiplied as floats
  }
}

// A tile of sums and where it belongs in the output, which may lack some of its rows or columns.
struct SumTile {
  float* out;  // of the tile's first row, whether or not the output has it
  size_t stride;
  size_t first_row;
  size_t end_row;
  size_t columns;

  bool whole() const {
    return first_row == 0 && end_row == amx::kTileRows && columns == kPanelRows;
  }
};

template <int kTile>
void BeginSums(const SumTile& tile, bool keep) {
  if (!keep) return amx::ZeroTile<kTile>();
  if (tile.whole()) return amx::LoadTile<kTile>(tile.out, tile.stride * sizeof(float));
  alignas(64) float sums[amx::kTileRows][kPanelRows] = {};
  for (size_t row = tile.first_row; row < tile.end_row; ++row) {
    std::copy_n(tile.out + row * tile.stride, tile.columns, sums[row]);
  }
  amx::LoadTile<kTile>(sums, amx::kTileRowBytes);
}

template <int kTile>
void EndSums(const SumTile& tile) {
  if (tile.whole()) return amx::StoreTile<kTile>(tile.out, tile.stride * sizeof(float));
  alignas(64) float sums[amx::kTileRows][kPanelRows];
  amx::StoreTile<kTile>(sums, amx::kTileRowBytes);
  for (size_t row = tile.first_row; row < tile.end_row; ++row) {
    std::copy_n(sums[row], tile.columns, tile.out + row * tile.stride);
  }
}

// One or two tiles of rows against `groups` groups of one or two unpacked panels. Tiles 0 to 3 are
// sums, row by row of them; 4 and 5 activations, 6 and 7 weights. All rows meet the same weights:
// as far as these fit, they stay in the first-level cache, which activations pass by.
template <bool kTwoRows, bool kTwoPanels>
void MultiplyBlock(const uint16_t* const (&rows)[2], const UnpackedPanel* panels, size_t groups,
                   const SumTile (&sums)[2][2], bool keep) {
  BeginSums<0>(sums[0][0], keep);
  if (kTwoPanels) BeginSums<1>(sums[0][1], keep);
  if (kTwoRows) BeginSums<2>(sums[1][0], keep);
  if (kTwoRows && kTwoPanels) BeginSums<3>(sums[1][1], keep);
  for (size_t g = 0; g < groups; ++g) {
    const size_t element = g * amx::kTileElements;
    amx::LoadTile<6>(panels[0] + element, amx::kTileRowBytes);
    amx::StreamTile<4>(rows[0] + element, amx::kTileRowBytes);
    amx::MultiplyTiles<0, 4, 6>();
    if (kTwoPanels) {
      amx::LoadTile<7>(panels[1] + element, amx::kTileRowBytes);
      amx::MultiplyTiles<1, 4, 7>();
    }
    if (kTwoRows) {
      amx::StreamTile<5>(rows[1] + element, amx::kTileRowBytes);
      amx::MultiplyTiles<2, 5, 6>();
      if (kTwoPanels) amx::MultiplyTiles<3, 5, 7>();
    }
  }
  EndSums<0>(sums[0][0]);
  if (kTwoPanels) EndSums<1>(sums[0][1]);
  if (kTwoRows) EndSums<2>(sums[1][0]);
  if (kTwoRows && kTwoPanels) EndSums<3>(sums[1][1]);
}

}  // namespace

void MultiplyPartAmx(const Activations& a, const MatMulOutput& output, const MatMulPart& part) {
  const PackedMatrix& w = *output.weights;
  const amx::Tiles configured;
  alignas(64) UnpackedPanel panels[2];
  // Tiles of rows lie at multiples of 16: the first and the last may have rows of others.
  const size_t end_row = part.first_row + part.rows;
  const size_t first_tile = part.first_row / amx::kTileRows;
  const size_t end_tile = (end_row + amx::kTileRows - 1) / amx::kTileRows;
  const auto output_tile = [&](size_t tile, size_t panel) {
    const size_t first = tile * amx::kTileRows, column = panel * kPanelRows;
    const ptrdiff_t rows_before =
        static_cast<ptrdiff_t>(first) - static_cast<ptrdiff_t>(part.first_row);
    return SumTile{.out = output.out + rows_before * static_cast<ptrdiff_t>(output.stride) +
                          (column - part.first_panel * kPanelRows),
                   .stride = output.stride,
                   .first_row = std::max(part.first_row, first) - first,
                   .end_row = std::min(end_row, first + amx::kTileRows) - first,
                   .columns = std::min(kPanelRows, w.rows - column)};
  };
  const size_t end = part.first_panel + part.panels;
  for (size_t panel = part.first_panel; panel < end; panel += 2) {
    const bool two_panels = panel + 1 < end;
    for (size_t g = 0; g < w.groups(); g += kGroupsAtOnce) {
      const size_t groups = std::min(kGroupsAtOnce, w.groups() - g);
      for (size_t i = 0; i < (two_panels ? 2 : 1); ++i) {
        Unpack(w, panel + i, g, groups, panels[i]);
      }
      for (size_t tile = first_tile; tile < end_tile; tile += 2) {
        const bool two_rows = tile + 1 < end_tile;
        const size_t next_tile = two_rows ? tile + 1 : tile;
        const size_t next_panel = two_panels ? panel + 1 : panel;
        const uint16_t* const from[2] = {a.bfloat16_tile(tile, g), a.bfloat16_tile(next_tile, g)};
        const SumTile sums[2][2] = {
            {output_tile(tile, panel), output_tile(tile, next_panel)},
            {output_tile(next_tile, panel), output_tile(next_tile, next_panel)}};
        const auto multiply =
            two_rows ? (two_panels ? MultiplyBlock<true, true> : MultiplyBlock<true, false>)
                     : (two_panels ? MultiplyBlock<false, true> : MultiplyBlock<false, false>);
        multiply(from, panels, groups, sums, output.accumulate || g > 0);
      }
    }
  }
}

}  // namespace whit

#endif  // __x86_64__
