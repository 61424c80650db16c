#include "runtime/ops/activations.h"

#include <algorithm>
#include <iterator>

#include "runtime/ops/cpu_extension.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/activations.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

// One group of 32 floats to codes of 8 bits, or of 15 (7 below the high byte).
HWY_INLINE void QuantizeGroup(const float* HWY_RESTRICT x, ActivationFormat format,
                              int8_t* HWY_RESTRICT codes, int8_t* HWY_RESTRICT low_codes,
                              float* scale, float* sum) {
  const DF df;
  const hn::Rebind<int32_t, DF> di;
  const hn::Rebind<int8_t, DF> d8;
  VF largest = hn::Zero(df);
  for (size_t i = 0; i < kGroupColumns; i += hn::Lanes(df)) {
    largest = hn::Max(largest, hn::Abs(hn::LoadU(df, x + i)));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  const float largest_code = format == ActivationFormat::kInt8 ? 127.0f : 127.0f * 128.0f;
  const VF inverse = hn::Set(df, max > 0 ? largest_code / max : 0.0f);
  const auto limit = hn::Set(di, static_cast<int32_t>(largest_code));
  auto total = hn::Zero(di);
  for (size_t i = 0; i < kGroupColumns; i += hn::Lanes(df)) {
    // Clamped, since x may be NaN or infinite if the weights are.
    const auto nearest = hn::NearestInt(hn::Mul(hn::LoadU(df, x + i), inverse));
    const auto code = hn::Max(hn::Min(nearest, limit), hn::Neg(limit));
    total = hn::Add(total, code);
    if (format == ActivationFormat::kInt8) {
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
      continue;
    }
    const auto high = hn::ShiftRight<7>(hn::Add(code, hn::Set(di, 64)));
    hn::StoreU(hn::DemoteTo(d8, high), d8, codes + i);
    hn::StoreU(hn::DemoteTo(d8, hn::Sub(code, hn::ShiftLeft<7>(high))), d8, low_codes + i);
  }
  *scale = max / largest_code;
  *sum = *scale * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, total)));
}

// The group at x or, of a row that ends after fewer columns, a copy padded with zeros.
HWY_INLINE const float* WholeGroup(const float* x, size_t columns, float (&padded)[kGroupColumns]) {
  if (columns >= kGroupColumns) return x;
  std::fill(std::copy(x, x + columns, padded), std::end(padded), 0.0f);
  return padded;
}

void QuantizeRow(const float* x, size_t columns, const Activations::Memory& to, size_t row,
                 size_t group) {
  for (size_t begin = 0; begin < columns; begin += kGroupColumns, ++group) {
    float padded[kGroupColumns];
    const size_t place = group * to.rows + row;
    QuantizeGroup(WholeGroup(x + begin, columns - begin, padded), to.formats[row],
                  to.codes + place * kGroupColumns, to.low_codes + place * kGroupColumns,
                  to.scales + place, to.sums + place);
  }
}

// Groups of a row, rounded as FloatToBFloat16 does, each to a tile.
void RoundRow(const float* HWY_RESTRICT x, size_t columns, uint16_t* HWY_RESTRICT to) {
  const DF df;
  const hn::Rebind<uint32_t, DF> du;
  const hn::Rebind<uint16_t, DF> du16;
  for (size_t begin = 0; begin < columns; begin += kGroupColumns, to += amx::kTileElements) {
    float padded[kGroupColumns];
    const float* group = WholeGroup(x + begin, columns - begin, padded);
    for (size_t i = 0; i < kGroupColumns; i += hn::Lanes(df)) {
      const auto bits = hn::Add(hn::BitCast(du, hn::LoadU(df, group + i)), hn::Set(du, 0x8000));
      const auto high = hn::BitCast(hn::Rebind<int32_t, DF>(), hn::ShiftRight<16>(bits));
      hn::StoreU(hn::DemoteTo(du16, high), du16, to + i);
    }
  }
}

void SetBlock(const Activations::Block& block, const float* x, size_t stride,
              const Activations::Memory& to) {
  const size_t group = block.first_column / kGroupColumns;
  for (size_t i = 0; i < block.rows; ++i, x += stride) {
    const size_t row = block.first_row + i;
    if (to.formats[row] == ActivationFormat::kBFloat16) {
      RoundRow(x, block.columns, to.bfloat16 + Activations::BFloat16Place(row, group, to.groups));
    } else {
      QuantizeRow(x, block.columns, to, row, group);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(SetBlock);

ActivationFormat PromptActivations() {
  return DetectCpuExtension() == CpuExtension::kAmx ? ActivationFormat::kBFloat16
                                                    : ActivationFormat::kInt8;
}

Activations::Activations(size_t max_rows, size_t max_columns) {
  const size_t groups = (max_columns + kGroupColumns - 1) / kGroupColumns;
  formats_.resize(max_rows);
  codes_ = hwy::AllocateAligned<int8_t>(max_rows * groups * kGroupColumns);
  low_codes_ = hwy::AllocateAligned<int8_t>(max_rows * groups * kGroupColumns);
  scales_ = hwy::AllocateAligned<float>(max_rows * groups);
  sums_ = hwy::AllocateAligned<float>(max_rows * groups);
  if (DetectCpuExtension() == CpuExtension::kAmx) {
    const size_t tiles = (max_rows + amx::kTileRows - 1) / amx::kTileRows;
    bfloat16_ = hwy::AllocateAligned<uint16_t>(tiles * groups * amx::kTileElements);
  }
}

void Activations::Reset(absl::Span<const ActivationFormat> formats, size_t columns) {
  std::copy(formats.begin(), formats.end(), formats_.begin());
  rows_ = formats.size();
  columns_ = columns;
  floats_ = nullptr;
}

void Activations::SetBlock(const Block& block, const float* x, size_t stride) {
  HWY_DYNAMIC_DISPATCH(SetBlock)
  (block, x, stride,
   {.formats = formats_.data(),
    .codes = codes_.get(),
    .low_codes = low_codes_.get(),
    .scales = scales_.get(),
    .sums = sums_.get(),
    .bfloat16 = bfloat16_.get(),
    .rows = rows_,
    .groups = groups()});
}

}  // namespace whit
#endif  // HWY_ONCE
