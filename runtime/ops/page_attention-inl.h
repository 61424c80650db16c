// One page against a tile of queries, for each SIMD target. Included once per target.
#if defined(WHIT_RUNTIME_OPS_PAGE_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WHIT_RUNTIME_OPS_PAGE_ATTENTION_INL_H_
#undef WHIT_RUNTIME_OPS_PAGE_ATTENTION_INL_H_
#else
#define WHIT_RUNTIME_OPS_PAGE_ATTENTION_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kvpool/page.h"
#include "runtime/ops/attention_range.h"
#include "runtime/ops/cpu_extension.h"
#include "runtime/ops/exp2-inl.h"
#include "runtime/ops/quad_dot-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // as in quad_dot-inl.h
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace page_attention {
namespace hn = hwy::HWY_NAMESPACE;
using quad_dot::BroadcastQuad;
using quad_dot::DF;
using quad_dot::DI;
using quad_dot::VF;
using quad_dot::VI;

constexpr size_t kRowBytes = QuantizedPageLayout::kRowBytes;

HWY_INLINE VF LoadHalf(const std::byte* base, size_t index) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(base) + index));
}

HWY_INLINE VI LoadRow(const std::byte* row, size_t lane) {
  return hn::LoadU(DI(), reinterpret_cast<const int32_t*>(row) + lane);
}

template <int kBits>
HWY_INLINE VI Codes(VI packed, int part) {
  if constexpr (kBits == 8) {
    return packed;
  } else {
    const VI mask = hn::Set(DI(), ((1 << kBits) - 1) * 0x01010101);
    return hn::And(part == 0 ? packed : hn::ShiftRightSame(packed, part * kBits), mask);
  }
}

// What a page's scores are made of beside its keys. Scores are in units of log2(e): 2^score is what
// softmax wants.
template <int kQueries>
struct ScoreTerms {
  float scale = 0;               // of a dot product of the query with a key
  float unit[kQueries] = {};     // the same for the query's integers
  float of_mean[kQueries] = {};  // the score of the mean that the page's keys are relative to
};

// scores[query][16] for one page of kBits-bit keys. Codes of 4 and 2 bits meet the query's high
// bytes, 8-bit codes both. kDim: head_dim, or 0 for any.
template <CpuExtension kExtension, int kBits, int kQueries, int kDim>
HWY_INLINE void QuantizedScores(const std::byte* page, const std::byte* scales, int head_dim,
                                const QueryTile& tile, const ScoreTerms<kQueries>& terms,
                                float* const* scores) {
  constexpr bool kLow = kBits == 8;
  constexpr int kMaxCode = (1 << kBits) - 1;
  constexpr size_t kRowStep = kBits == 8 ? 2 : 1;
  const DF df;
  const size_t rows = QuantizedPageLayout::KeyRows(kDim != 0 ? kDim : head_dim, kBits);
  for (size_t lane = 0; lane < kTileTokens; lane += hn::Lanes(df)) {
    VI high[kQueries][2], low[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      high[i][0] = high[i][1] = low[i] = hn::Zero(DI());
    }
    // Two sums a query keep the multipliers busy. rows is even: head_dim is a multiple of 16.
    for (size_t row = 0; row < rows; row += kRowStep) {
      for (size_t r = 0; r < kRowStep; ++r) {
        const VI packed = LoadRow(page + (row + r) * kRowBytes, lane);
        for (int part = 0; part < 8 / kBits; ++part) {
          const VI codes = Codes<kBits>(packed, part);
          const size_t quad = part * rows + row + r;
          for (int i = 0; i < kQueries; ++i) {
            VI& sum = high[i][kBits == 8 ? r : part % 2];
            sum = quad_dot::Add<kExtension, kMaxCode, -127, 127>(sum, codes,
                                                                 BroadcastQuad(tile.high[i], quad));
            if constexpr (kLow) {
              low[i] = quad_dot::Add<kExtension, kMaxCode, -64, 64>(
                  low[i], codes, BroadcastQuad(tile.low[i], quad));
            }
          }
        }
      }
    }
    const VF scale = LoadHalf(scales, lane);
    const VF half = hn::Set(df, 0.5f * kMaxCode);
    for (int i = 0; i < kQueries; ++i) {
      const auto centre = [&](VI sum, int32_t query_sum) {
        return hn::NegMulAdd(half, hn::Set(df, static_cast<float>(query_sum)),
                             hn::ConvertTo(df, sum));
      };
      VF score = hn::Mul(centre(hn::Add(high[i][0], high[i][1]), tile.high_sum[i]),
                         hn::Set(df, 128.0f * terms.unit[i]));
      if constexpr (kLow) {
        score = hn::MulAdd(centre(low[i], tile.low_sum[i]), hn::Set(df, terms.unit[i]), score);
      }
      hn::StoreU(hn::MulAdd(score, scale, hn::Set(df, terms.of_mean[i])), df, scores[i] + lane);
    }
  }
}

// The same for an FP16 page. Two sums a query, over even and odd dimensions, keep the multipliers
// busy.
template <int kQueries, int kDim>
HWY_INLINE void Fp16Scores(const std::byte* page, int any_dim, const QueryTile& tile,
                           const ScoreTerms<kQueries>& terms, float* const* scores) {
  const DF df;
  const int head_dim = kDim != 0 ? kDim : any_dim;
  for (size_t lane = 0; lane < kTileTokens; lane += hn::Lanes(df)) {
    VF even[kQueries], odd[kQueries];
    for (int i = 0; i < kQueries; ++i) even[i] = odd[i] = hn::Zero(df);
    for (int dim = 0; dim < head_dim; dim += 2) {
      const VF k0 = LoadHalf(page, dim * kTileTokens + lane);
      const VF k1 = LoadHalf(page, (dim + 1) * kTileTokens + lane);
      for (int i = 0; i < kQueries; ++i) {
        even[i] = hn::MulAdd(hn::Set(df, tile.rotated[i][dim]), k0, even[i]);
        odd[i] = hn::MulAdd(hn::Set(df, tile.rotated[i][dim + 1]), k1, odd[i]);
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      hn::StoreU(hn::Mul(hn::Add(even[i], odd[i]), hn::Set(df, terms.scale)), df, scores[i] + lane);
    }
  }
}

// A page's 16 weights p * scale as unsigned integers and what one of them is worth.
struct PageWeights {
  HWY_ALIGN uint8_t high[kTileTokens];
  HWY_ALIGN uint8_t low[kTileTokens];  // 16-bit weights only: weight = 256 * high + low
  float unit;                          // 0: all of them are 0
};

// 8-bit weights, or 16-bit ones if kWide.
template <bool kWide>
HWY_INLINE void QuantizeWeights(const float* p, const std::byte* scales, PageWeights& weights) {
  const DF df;
  const hn::Rebind<uint8_t, DF> du8;
  VF largest = hn::Zero(df);
  for (size_t lane = 0; lane < kTileTokens; lane += hn::Lanes(df)) {
    largest = hn::Max(largest, hn::Mul(hn::LoadU(df, p + lane), LoadHalf(scales, lane)));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  constexpr float kLargest = kWide ? 65535.0f : 255.0f;
  const bool any = max > 1e-30f;
  weights.unit = any ? max / kLargest : 0.0f;
  const VF inverse = hn::Set(df, any ? kLargest / max : 0.0f);
  // Added to a number below 2^22, this leaves its nearest integer in the lowest bits.
  const VF round = hn::Set(df, 0x1p23f);
  for (size_t lane = 0; lane < kTileTokens; lane += hn::Lanes(df)) {
    const VF w = hn::Mul(hn::LoadU(df, p + lane), LoadHalf(scales, lane));
    const VI integer = hn::BitCast(DI(), hn::MulAdd(w, inverse, round));
    // Not TruncateTo: Highway 1.0.3 has it wrong for AVX3_DL.
    const auto byte = [&](VI x) { return hn::DemoteTo(du8, hn::And(x, hn::Set(DI(), 0xFF))); };
    if constexpr (kWide) {
      hn::StoreU(byte(hn::ShiftRight<8>(integer)), du8, weights.high + lane);
      hn::StoreU(byte(integer), du8, weights.low + lane);
    } else {
      hn::StoreU(byte(integer), du8, weights.high + lane);
    }
  }
}

// values[query][head_dim] += sum over tokens of weight * value, for one page of kBits-bit values.
template <CpuExtension kExtension, int kBits, int kQueries, int kDim>
HWY_INLINE void AddQuantizedValues(const std::byte* codes, int head_dim, const PageWeights* weights,
                                   float* const* values) {
  constexpr bool kWide = kBits == 8;
  constexpr size_t kPlanes = QuantizedPageLayout::ValuePlanes(kBits);
  // Signed codes of 8 bits are c - 128; smaller ones are small enough as they are.
  constexpr int kMinS = kBits == 8 ? -128 : 0;
  constexpr int kMaxS = kBits == 8 ? 127 : (1 << kBits) - 1;
  constexpr float kCentre = kBits == 8 ? -0.5f : 0.5f * ((1 << kBits) - 1);
  const DF df;
  // A code c stands for c - kCentre: what that takes off, for all dimensions alike.
  VF centre[kQueries];
  float any = 0;
  for (int i = 0; i < kQueries; ++i) {
    any += weights[i].unit;
    const VI ones = hn::Set(DI(), 0x01010101);
    VI high = hn::Zero(DI()), low = hn::Zero(DI());
    for (size_t quad = 0; quad < 4; ++quad) {
      high = quad_dot::Add<kExtension, 255, 0, 1>(high, BroadcastQuad(weights[i].high, quad), ones);
      if constexpr (kWide) {
        low = quad_dot::Add<kExtension, 255, 0, 1>(low, BroadcastQuad(weights[i].low, quad), ones);
      }
    }
    if constexpr (kWide) high = hn::Add(hn::ShiftLeft<8>(high), low);
    centre[i] = hn::Mul(hn::ConvertTo(df, high), hn::Set(df, kCentre));
  }
  if (any == 0) return;
  const size_t d = kDim != 0 ? kDim : head_dim;
  for (size_t block = 0; block < d; block += 16, codes += kPlanes * kRowBytes) {
    for (size_t lane = 0; lane < 16; lane += hn::Lanes(df)) {
      VI quads[4];  // of tokens
      for (size_t plane = 0; plane < kPlanes; ++plane) {
        const VI packed = LoadRow(codes + plane * kRowBytes, lane);
        for (size_t part = 0; part < 4 / kPlanes; ++part) {
          quads[part * kPlanes + plane] = Codes<kBits>(packed, static_cast<int>(part));
        }
      }
      if constexpr (kBits == 8) {
        for (VI& quad : quads) quad = hn::Xor(quad, hn::Set(DI(), static_cast<int>(0x80808080)));
      }
      for (int i = 0; i < kQueries; ++i) {
        VI high = hn::Zero(DI()), low = hn::Zero(DI());
        for (size_t quad = 0; quad < 4; ++quad) {
          high = quad_dot::Add<kExtension, 255, kMinS, kMaxS>(
              high, BroadcastQuad(weights[i].high, quad), quads[quad]);
          if constexpr (kWide) {
            low = quad_dot::Add<kExtension, 255, kMinS, kMaxS>(
                low, BroadcastQuad(weights[i].low, quad), quads[quad]);
          }
        }
        if constexpr (kWide) high = hn::Add(hn::ShiftLeft<8>(high), low);
        const VF sum = hn::Sub(hn::ConvertTo(df, high), centre[i]);
        float* out = values[i] + block + lane;
        hn::StoreU(hn::MulAdd(sum, hn::Set(df, weights[i].unit), hn::LoadU(df, out)), df, out);
      }
    }
  }
}

template <int kQueries, int kDim>
HWY_INLINE void AddFp16Values(const std::byte* codes, int any_dim, const float* const* p,
                              float* const* values) {
  const DF df;
  const size_t d = kDim != 0 ? kDim : any_dim, lanes = hn::Lanes(df);
  // 64 dimensions at once where there are as many, else 16.
  constexpr size_t kVectors = kDim % 64 == 0 && kDim != 0 ? 64 / hn::MaxLanes(DF()) : 1;
  for (size_t dim = 0; dim < d; dim += kVectors * lanes) {
    VF sums[kQueries][kVectors];
    for (int i = 0; i < kQueries; ++i) {
      for (size_t j = 0; j < kVectors; ++j) {
        sums[i][j] = hn::LoadU(df, values[i] + dim + j * lanes);
      }
    }
    for (size_t t = 0; t < kTileTokens; ++t) {
      for (size_t j = 0; j < kVectors; ++j) {
        const VF v = LoadHalf(codes, t * d + dim + j * lanes);
        for (int i = 0; i < kQueries; ++i) {
          sums[i][j] = hn::MulAdd(hn::Set(df, p[i][t]), v, sums[i][j]);
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      for (size_t j = 0; j < kVectors; ++j) {
        hn::StoreU(sums[i][j], df, values[i] + dim + j * lanes);
      }
    }
  }
}

// q . mean, which a page's scores lack.
HWY_INLINE float MeanScore(const float* q, const float* mean, int head_dim) {
  const DF df;
  VF sum = hn::Zero(df);
  for (int dim = 0; dim < head_dim; dim += static_cast<int>(hn::Lanes(df))) {
    sum = hn::MulAdd(hn::LoadU(df, q + dim), hn::LoadU(df, mean + dim), sum);
  }
  return hn::GetLane(hn::SumOfLanes(df, sum));
}

// Turns n scores into p = 2^(score - max).
HWY_INLINE void Exponentiate(float* HWY_RESTRICT scores, size_t n, float* max, float* sum) {
  const DF df;
  VF largest = hn::Set(df, kNoScore);
  for (size_t t = 0; t < n; t += hn::Lanes(df)) {
    largest = hn::Max(largest, hn::LoadU(df, scores + t));
  }
  *max = hn::GetLane(hn::MaxOfLanes(df, largest));
  const VF m = hn::Set(df, *max);
  VF total = hn::Zero(df);
  for (size_t t = 0; t < n; t += hn::Lanes(df)) {
    const VF p = Exp2(df, hn::Sub(hn::LoadU(df, scores + t), m));
    total = hn::Add(total, p);
    hn::StoreU(p, df, scores + t);
  }
  *sum = hn::GetLane(hn::SumOfLanes(df, total));
}

template <CpuExtension kExtension, int kQueries, int kDim>
HWY_INLINE void PageScores(const std::byte* page, Rung rung, int head_dim, const QueryTile& tile,
                           const ScoreTerms<kQueries>& terms, float* const* scores) {
  const QuantizedPageLayout layout(head_dim, KeyBits(rung), ValueBits(rung));
  const std::byte* scales = page + layout.key_scales;
  switch (KeyBits(rung)) {
    case 2:
      return QuantizedScores<kExtension, 2, kQueries, kDim>(page, scales, head_dim, tile, terms,
                                                            scores);
    case 4:
      return QuantizedScores<kExtension, 4, kQueries, kDim>(page, scales, head_dim, tile, terms,
                                                            scores);
    case 8:
      return QuantizedScores<kExtension, 8, kQueries, kDim>(page, scales, head_dim, tile, terms,
                                                            scores);
    default:
      return Fp16Scores<kQueries, kDim>(page + Fp16PageLayout::KeyOffset(head_dim), head_dim, tile,
                                        terms, scores);
  }
}

template <int kQueries>
HWY_INLINE void PageWeightsOf(const std::byte* page, Rung rung, int head_dim, const float* const* p,
                              PageWeights* weights) {
  const std::byte* scales =
      page + QuantizedPageLayout(head_dim, KeyBits(rung), ValueBits(rung)).value_scales;
  for (int i = 0; i < kQueries; ++i) {
    if (ValueBits(rung) == 8) {
      QuantizeWeights</*kWide=*/true>(p[i], scales, weights[i]);
    } else {
      QuantizeWeights</*kWide=*/false>(p[i], scales, weights[i]);
    }
  }
}

template <CpuExtension kExtension, int kQueries, int kDim>
HWY_INLINE void AddPageValues(const std::byte* page, Rung rung, int head_dim, const float* const* p,
                              const PageWeights* weights, float* const* values) {
  const std::byte* codes =
      page + QuantizedPageLayout(head_dim, KeyBits(rung), ValueBits(rung)).value_codes;
  switch (ValueBits(rung)) {
    case 2:
      return AddQuantizedValues<kExtension, 2, kQueries, kDim>(codes, head_dim, weights, values);
    case 4:
      return AddQuantizedValues<kExtension, 4, kQueries, kDim>(codes, head_dim, weights, values);
    case 8:
      return AddQuantizedValues<kExtension, 8, kQueries, kDim>(codes, head_dim, weights, values);
    default:
      return AddFp16Values<kQueries, kDim>(page + Fp16PageLayout::ValueOffset(head_dim), head_dim,
                                           p, values);
  }
}

}  // namespace page_attention
}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#endif  // WHIT_RUNTIME_OPS_PAGE_ATTENTION_INL_H_
