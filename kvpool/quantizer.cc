#include "kvpool/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvpool/page.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvpool/quantizer.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"

#ifndef WHIT_KVPOOL_QUANTIZER_CONSTANTS_
#define WHIT_KVPOOL_QUANTIZER_CONSTANTS_
namespace whit {
namespace quantizer_internal {

// The largest head_dim that stack buffers here hold.
constexpr int kMaxHeadDim = 512;

// Steps tried at 4 bits, relative to max|x| / 8, and at 2 bits, relative to the root mean square.
// More of them gain less than 1 % of the squared error on Gaussian data.
constexpr float kSteps4[] = {0.75f, 0.82f, 0.89f, 0.96f, 1.03f, 1.10f};
constexpr float kSteps2[] = {0.85f, 1.0f, 1.15f};

constexpr float kLargestHalf = 65504.0f;

}  // namespace quantizer_internal
}  // namespace whit
#endif  // WHIT_KVPOOL_QUANTIZER_CONSTANTS_

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace quantizer_internal;  // NOLINT: one name space per target

// head_dim is a multiple of 16, and so of every vector's lanes.
using DF = hn::CappedTag<float, 16>;
using DI = hn::Rebind<int32_t, DF>;
using DH = hn::Rebind<hwy::float16_t, DF>;
using DU8 = hn::Rebind<uint8_t, DF>;
using VF = hn::Vec<DF>;

// A stage of the Hadamard transform inside a vector: a + b and a - b for lanes kHalf apart.
template <size_t kHalf>
HWY_INLINE VF HadamardStage(VF v) {
  const DI di;
  const auto bit = hn::Set(di, static_cast<int32_t>(kHalf));
  const auto lanes = hn::Iota(di, 0);
  const VF other = hn::TableLookupLanes(v, hn::IndicesFromVec(DF(), hn::Xor(lanes, bit)));
  const VF one = hn::Set(DF(), 1.0f);
  const VF sign = hn::IfThenElse(hn::RebindMask(DF(), hn::TestBit(lanes, bit)), hn::Neg(one), one);
  return hn::MulAdd(v, sign, other);
}

// The transform of kVectors vectors, which stay in registers.
template <size_t kVectors>
HWY_INLINE void HadamardOf(float* HWY_RESTRICT x, float scale) {
  const DF df;
  VF v[kVectors];
  for (size_t i = 0; i < kVectors; ++i) v[i] = hn::LoadU(df, x + i * hn::Lanes(df));
  for (size_t half = kVectors / 2; half >= 1; half /= 2) {
    for (size_t i = 0; i < kVectors; ++i) {
      if ((i & half) != 0) continue;
      const VF a = v[i], b = v[i + half];
      v[i] = hn::Add(a, b);
      v[i + half] = hn::Sub(a, b);
    }
  }
  const VF factor = hn::Set(df, scale);
  for (size_t i = 0; i < kVectors; ++i) {
    if constexpr (hn::MaxLanes(DF()) >= 16) v[i] = HadamardStage<8>(v[i]);
    if constexpr (hn::MaxLanes(DF()) >= 8) v[i] = HadamardStage<4>(v[i]);
    if constexpr (hn::MaxLanes(DF()) >= 4) v[i] = HadamardStage<2>(v[i]);
    if constexpr (hn::MaxLanes(DF()) >= 2) v[i] = HadamardStage<1>(v[i]);
    hn::StoreU(hn::Mul(v[i], factor), df, x + i * hn::Lanes(df));
  }
}

void Rotate(float* HWY_RESTRICT x, int head_dim) {
  const DF df;
  const auto d = static_cast<size_t>(head_dim);
  const size_t order = d & (~d + 1), lanes = hn::Lanes(df);
  const float scale = 1.0f / std::sqrt(static_cast<float>(order));
  // Stages of more vectors than there are registers for.
  constexpr size_t kMaxVectors = 8;
  for (size_t half = order / 2; half >= kMaxVectors * lanes; half /= 2) {
    for (size_t block = 0; block < d; block += 2 * half) {
      for (size_t i = block; i < block + half; i += lanes) {
        const VF a = hn::LoadU(df, x + i), b = hn::LoadU(df, x + i + half);
        hn::StoreU(hn::Add(a, b), df, x + i);
        hn::StoreU(hn::Sub(a, b), df, x + i + half);
      }
    }
  }
  const size_t vectors = std::min(order / lanes, kMaxVectors);
  for (size_t i = 0; i < d; i += vectors * lanes) {
    switch (vectors) {
      case 1:
        HadamardOf<1>(x + i, scale);
        break;
      case 2:
        HadamardOf<2>(x + i, scale);
        break;
      case 4:
        HadamardOf<4>(x + i, scale);
        break;
      default:
        HadamardOf<kMaxVectors>(x + i, scale);
    }
  }
}

// level(x) = floor(x / step) clamped to [-half, half - 1]; the value it stands for is level + 1/2.
HWY_INLINE VF Level(VF x, VF inverse_step, VF half) {
  const VF level = hn::Floor(hn::Mul(x, inverse_step));
  return hn::Clamp(level, hn::Neg(half), hn::Sub(half, hn::Set(DF(), 1.0f)));
}

// How much of the squared norm codes of this step explain: <x, q>^2 / <q, q>.
HWY_INLINE float Explained(const float* HWY_RESTRICT x, size_t d, float step, float half) {
  const DF df;
  const VF inverse = hn::Set(df, 1.0f / step), vhalf = hn::Set(df, half);
  VF xq = hn::Zero(df), qq = hn::Zero(df);
  for (size_t i = 0; i < d; i += hn::Lanes(df)) {
    const VF v = hn::LoadU(df, x + i);
    const VF q = hn::Add(Level(v, inverse, vhalf), hn::Set(df, 0.5f));
    xq = hn::MulAdd(v, q, xq);
    qq = hn::MulAdd(q, q, qq);
  }
  const float dot = hn::GetLane(hn::SumOfLanes(df, xq));
  return dot * dot / hn::GetLane(hn::SumOfLanes(df, qq));
}

void Quantize(const float* HWY_RESTRICT x, int head_dim, int bits, uint8_t* HWY_RESTRICT codes,
              float* scale) {
  const DF df;
  const auto d = static_cast<size_t>(head_dim);
  VF largest = hn::Zero(df), squares = hn::Zero(df);
  for (size_t i = 0; i < d; i += hn::Lanes(df)) {
    const VF v = hn::LoadU(df, x + i);
    largest = hn::Max(largest, hn::Abs(v));
    squares = hn::MulAdd(v, v, squares);
  }
  const float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  const float norm2 = hn::GetLane(hn::SumOfLanes(df, squares));
  const auto half = static_cast<float>(1 << (bits - 1));
  if (!(norm2 > 1e-30f)) {
    std::memset(codes, 0, d);
    *scale = 0;
    return;
  }
  float step = max / half;
  const auto search = [&](float unit, const float* factors, size_t count) {
    float best = -1;
    for (size_t i = 0; i < count; ++i) {
      const float explained = Explained(x, d, unit * factors[i], half);
      if (explained > best) {
        best = explained;
        step = unit * factors[i];
      }
    }
  };
  if (bits == 4) search(max / half, kSteps4, std::size(kSteps4));
  if (bits == 2) search(std::sqrt(norm2 / static_cast<float>(d)), kSteps2, std::size(kSteps2));

  const VF inverse = hn::Set(df, 1.0f / step), vhalf = hn::Set(df, half);
  VF qq = hn::Zero(df);
  for (size_t i = 0; i < d; i += hn::Lanes(df)) {
    const VF level = Level(hn::LoadU(df, x + i), inverse, vhalf);
    const VF q = hn::Add(level, hn::Set(df, 0.5f));
    qq = hn::MulAdd(q, q, qq);
    hn::StoreU(hn::DemoteTo(DU8(), hn::ConvertTo(DI(), hn::Add(level, vhalf))), DU8(), codes + i);
  }
  *scale = std::sqrt(norm2 / hn::GetLane(hn::SumOfLanes(df, qq)));
}

HWY_INLINE VF ToFloat(const hwy::float16_t* p) { return hn::PromoteTo(DF(), hn::LoadU(DH(), p)); }

// Rounds to binary16's 10 bits of mantissa, to nearest even, where Highway's emulation of the
// conversion would cut them off.
HWY_INLINE VF RoundForHalf(VF v) {
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_EMU128 || \
    HWY_TARGET == HWY_SCALAR
  const DI di;
  const auto bits = hn::BitCast(di, v);
  const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(di, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(di, 0xFFF)));
  return hn::BitCast(DF(), hn::AndNot(hn::Set(di, 0x1FFF), rounded));
#else
  return v;
#endif
}

// n floats, n a multiple of 16.
HWY_INLINE void ToHalf(const float* HWY_RESTRICT x, size_t n, hwy::float16_t* HWY_RESTRICT out) {
  const DF df;
  const VF limit = hn::Set(df, kLargestHalf);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF v = hn::Clamp(hn::LoadU(df, x + i), hn::Neg(limit), limit);
    hn::StoreU(hn::DemoteTo(DH(), RoundForHalf(v)), DH(), out + i);
  }
}

HWY_INLINE void WriteScale(std::byte* scales, int slot, float scale) {
  HWY_ALIGN float padded[16] = {scale};
  hwy::float16_t half[16];
  ToHalf(padded, 16, half);
  std::memcpy(scales + slot * sizeof(uint16_t), half, sizeof(uint16_t));
}

void WriteFp16(std::byte* page, int head_dim, int slot, int count, const TokenRows& rows) {
  const auto d = static_cast<size_t>(head_dim);
  auto* keys = reinterpret_cast<uint16_t*>(page + Fp16PageLayout::KeyOffset(head_dim));
  auto* values = reinterpret_cast<hwy::float16_t*>(page + Fp16PageLayout::ValueOffset(head_dim));
  for (int i = 0; i < count; ++i) {
    HWY_ALIGN uint16_t key[16];
    for (size_t block = 0; block < d; block += 16) {
      ToHalf(rows.keys + i * rows.stride + block, 16, reinterpret_cast<hwy::float16_t*>(key));
      for (size_t j = 0; j < 16; ++j) keys[(block + j) * kTileTokens + slot + i] = key[j];
    }
    ToHalf(rows.values + i * rows.stride, d, values + (slot + i) * d);
  }
}

void ReadFp16(const std::byte* page, int head_dim, int count, float* keys, float* values) {
  const DF df;
  const auto d = static_cast<size_t>(head_dim);
  const auto* k =
      reinterpret_cast<const hwy::float16_t*>(page + Fp16PageLayout::KeyOffset(head_dim));
  const auto* v =
      reinterpret_cast<const hwy::float16_t*>(page + Fp16PageLayout::ValueOffset(head_dim));
  for (size_t dim = 0; dim < d; ++dim) {
    HWY_ALIGN float tokens[16];
    for (size_t i = 0; i < 16; i += hn::Lanes(df)) {
      hn::Store(ToFloat(k + dim * kTileTokens + i), df, tokens + i);
    }
    for (int i = 0; i < count; ++i) keys[i * d + dim] = tokens[i];
  }
  for (size_t i = 0; i < count * d; i += hn::Lanes(df)) {
    hn::StoreU(ToFloat(v + i), df, values + i);
  }
}

// ORs one token's codes into its bits, which are zero.
HWY_INLINE void PackKey(uint8_t* rows, int head_dim, int bits, int slot, const uint8_t* codes) {
  const size_t num_rows = QuantizedPageLayout::KeyRows(head_dim, bits);
  const size_t quads = head_dim / 4;
  for (size_t row = 0; row < num_rows; ++row) {
    uint32_t packed = 0;
    for (size_t quad = row, shift = 0; quad < quads; quad += num_rows, shift += bits) {
      uint32_t four;
      std::memcpy(&four, codes + 4 * quad, sizeof(four));
      packed |= four << shift;
    }
    std::memcpy(rows + row * QuantizedPageLayout::kRowBytes + 4 * slot, &packed, sizeof(packed));
  }
}

HWY_INLINE void PackValue(uint8_t* rows, int head_dim, int bits, int slot, const uint8_t* codes) {
  const size_t planes = QuantizedPageLayout::ValuePlanes(bits), quad = slot / 4;
  const size_t shift = bits * (quad / planes);
  uint8_t* base = rows + quad % planes * QuantizedPageLayout::kRowBytes + slot % 4;
  for (int block = 0; block < head_dim; block += 16) {
    for (int i = 0; i < 16; ++i) {
      base[4 * i] = static_cast<uint8_t>(base[4 * i] | codes[block + i] << shift);
    }
    base += planes * QuantizedPageLayout::kRowBytes;
  }
}

void WriteQuantized(std::byte* page, int head_dim, int key_bits, int value_bits, int slot,
                    int count, const TokenRows& rows, const float* key_mean) {
  const DF df;
  const QuantizedPageLayout layout(head_dim, key_bits, value_bits);
  HWY_ALIGN float centred[kMaxHeadDim];
  HWY_ALIGN uint8_t codes[kMaxHeadDim];
  for (int i = 0; i < count; ++i, ++slot) {
    const float* key = rows.keys + i * rows.stride;
    if (key_mean != nullptr) {
      for (int j = 0; j < head_dim; j += static_cast<int>(hn::Lanes(df))) {
        hn::Store(hn::Sub(hn::LoadU(df, key + j), hn::LoadU(df, key_mean + j)), df, centred + j);
      }
      key = centred;
    }
    float scale;
    Quantize(key, head_dim, key_bits, codes, &scale);
    PackKey(reinterpret_cast<uint8_t*>(page), head_dim, key_bits, slot, codes);
    WriteScale(page + layout.key_scales, slot, scale);
    Quantize(rows.values + i * rows.stride, head_dim, value_bits, codes, &scale);
    PackValue(reinterpret_cast<uint8_t*>(page) + layout.value_codes, head_dim, value_bits, slot,
              codes);
    WriteScale(page + layout.value_scales, slot, scale);
  }
}

// 16 unsigned codes of `bits` bits, one in the low bits of each lane after a shift.
HWY_INLINE VF DecodeLanes(hn::Vec<DI> packed, int shift, int bits, VF half_levels) {
  const auto code = hn::And(hn::ShiftRightSame(packed, shift), hn::Set(DI(), (1 << bits) - 1));
  return hn::Sub(hn::ConvertTo(DF(), code), half_levels);
}

void ReadQuantized(const std::byte* page, int head_dim, int key_bits, int value_bits, int count,
                   const float* key_mean, float* keys, float* values) {
  const DF df;
  const DI di;
  const auto d = static_cast<size_t>(head_dim);
  const QuantizedPageLayout layout(head_dim, key_bits, value_bits);
  HWY_ALIGN float key_scales[16], value_scales[16], lanes[16];
  for (size_t i = 0; i < 16; i += hn::Lanes(df)) {
    hn::Store(ToFloat(reinterpret_cast<const hwy::float16_t*>(page + layout.key_scales) + i), df,
              key_scales + i);
    hn::Store(ToFloat(reinterpret_cast<const hwy::float16_t*>(page + layout.value_scales) + i), df,
              value_scales + i);
  }
  const auto load = [&](const std::byte* row, size_t i) {
    return hn::LoadU(di, reinterpret_cast<const int32_t*>(row) + i);
  };

  // A lane is a token; its four bytes are four dimensions.
  const size_t rows = QuantizedPageLayout::KeyRows(head_dim, key_bits);
  const VF key_half = hn::Set(df, 0.5f * static_cast<float>((1 << key_bits) - 1));
  for (size_t dim = 0; dim < d; ++dim) {
    const size_t quad = dim / 4;
    const std::byte* row = page + quad % rows * QuantizedPageLayout::kRowBytes;
    const int shift = static_cast<int>(8 * (dim % 4) + key_bits * (quad / rows));
    const float mean = key_mean != nullptr ? key_mean[dim] : 0.0f;
    for (size_t i = 0; i < 16; i += hn::Lanes(df)) {
      const VF v = DecodeLanes(load(row, i), shift, key_bits, key_half);
      hn::Store(hn::MulAdd(v, hn::Load(df, key_scales + i), hn::Set(df, mean)), df, lanes + i);
    }
    for (int token = 0; token < count; ++token) keys[token * d + dim] = lanes[token];
  }

  // A lane is a dimension; its four bytes are four tokens.
  const size_t planes = QuantizedPageLayout::ValuePlanes(value_bits);
  const VF value_half = hn::Set(df, 0.5f * static_cast<float>((1 << value_bits) - 1));
  for (int token = 0; token < count; ++token) {
    const size_t quad = token / 4;
    const int shift = static_cast<int>(8 * (token % 4) + value_bits * (quad / planes));
    const VF scale = hn::Set(df, value_scales[token]);
    for (size_t block = 0; block < d; block += 16) {
      const std::byte* row = page + layout.value_codes +
                             (block / 16 * planes + quad % planes) * QuantizedPageLayout::kRowBytes;
      for (size_t i = 0; i < 16; i += hn::Lanes(df)) {
        const VF v = DecodeLanes(load(row, i), shift, value_bits, value_half);
        hn::StoreU(hn::Mul(v, scale), df, values + token * d + block + i);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(Rotate);
HWY_EXPORT(Quantize);
HWY_EXPORT(WriteFp16);
HWY_EXPORT(WriteQuantized);
HWY_EXPORT(ReadFp16);
HWY_EXPORT(ReadQuantized);

void RotateHadamard(float* x, int head_dim) { HWY_DYNAMIC_DISPATCH(Rotate)(x, head_dim); }

void QuantizeVector(const float* x, int head_dim, int bits, uint8_t* codes, float* scale) {
  HWY_DYNAMIC_DISPATCH(Quantize)(x, head_dim, bits, codes, scale);
}

void WriteTokens(std::byte* page, Rung rung, int head_dim, int slot, int count,
                 const TokenRows& rows, const float* key_mean) {
  if (rung == Rung::kFp16) {
    HWY_DYNAMIC_DISPATCH(WriteFp16)(page, head_dim, slot, count, rows);
  } else {
    HWY_DYNAMIC_DISPATCH(WriteQuantized)
    (page, head_dim, KeyBits(rung), ValueBits(rung), slot, count, rows, key_mean);
  }
}

void KeepTokens(std::byte* page, Rung rung, int head_dim, int count) {
  const auto d = static_cast<size_t>(head_dim);
  const auto clear_halves = [&](std::byte* base, size_t first, size_t end) {
    std::memset(base + first * sizeof(uint16_t), 0, (end - first) * sizeof(uint16_t));
  };
  if (rung == Rung::kFp16) {
    for (size_t dim = 0; dim < d; ++dim) {
      clear_halves(page + Fp16PageLayout::KeyOffset(head_dim), dim * kTileTokens + count,
                   (dim + 1) * kTileTokens);
    }
    clear_halves(page + Fp16PageLayout::ValueOffset(head_dim), count * d, kTileTokens * d);
    return;
  }
  const int key_bits = KeyBits(rung), value_bits = ValueBits(rung);
  const QuantizedPageLayout layout(head_dim, key_bits, value_bits);
  constexpr size_t kRowBytes = QuantizedPageLayout::kRowBytes;
  for (size_t row = 0; row < QuantizedPageLayout::KeyRows(head_dim, key_bits); ++row) {
    std::memset(page + row * kRowBytes + 4 * count, 0, kRowBytes - 4 * count);
  }
  // Which bits of a plane's byte [4 * dim + token % 4] belong to the tokens that are kept.
  const size_t planes = QuantizedPageLayout::ValuePlanes(value_bits);
  uint8_t kept[4][4] = {};  // [plane][token % 4]
  for (int token = 0; token < count; ++token) {
    const size_t quad = token / 4;
    kept[quad % planes][token % 4] |=
        static_cast<uint8_t>(((1 << value_bits) - 1) << value_bits * (quad / planes));
  }
  auto* values = reinterpret_cast<uint8_t*>(page + layout.value_codes);
  for (size_t i = 0; i < layout.key_scales - layout.value_codes; ++i) {
    values[i] &= kept[i / kRowBytes % planes][i % 4];
  }
  clear_halves(page + layout.key_scales, count, kTileTokens);
  clear_halves(page + layout.value_scales, count, kTileTokens);
}

void ReadTokens(const std::byte* page, Rung rung, int head_dim, int count, const float* key_mean,
                float* keys, float* values) {
  if (rung == Rung::kFp16) {
    HWY_DYNAMIC_DISPATCH(ReadFp16)(page, head_dim, count, keys, values);
  } else {
    HWY_DYNAMIC_DISPATCH(ReadQuantized)
    (page, head_dim, KeyBits(rung), ValueBits(rung), count, key_mean, keys, values);
  }
}

}  // namespace whit
#endif  // HWY_ONCE
