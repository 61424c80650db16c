#include "runtime/ops/matmul.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/ops/amx_matmul.h"
#include "runtime/ops/cpu_extension.h"
#include "runtime/ops/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/matmul.cc"
#define HWY_WANT_AVX3_DL 1
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "runtime/ops/dot-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // as in dot-inl.h
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows of activations per pass over a panel: their accumulators (64 bytes a row) stay in L1.
constexpr size_t kRowBlock = 128;

// How far ahead of the multiplication a panel's groups are fetched. One row of activations leaves
// too little work to keep enough cache lines on their way; more rows do not mind. Panels follow
// each other in memory, so the distance may reach into the next.
constexpr size_t kPrefetchBytes = 8192;

HWY_INLINE void PrefetchAhead(const std::byte* group, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) {
    hwy::Prefetch(group + kPrefetchBytes + line);
  }
}

// One SIMD vector of a group's scales, as f32.
HWY_INLINE VF LoadScales(const std::byte* scales, size_t index, bool f32) {
  if (f32) return hn::LoadU(DF(), reinterpret_cast<const float*>(scales) + index);
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(),
                       hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(scales) + index));
}

// A panel's group against rows of activations that have the same number of bits.
struct GroupActivations {
  const int8_t* codes;
  const int8_t* low_codes;  // 16 bits only
  const float* scales;
  const float* sums;
  size_t rows;
};

// acc[row][16] += the products of one panel's group with rows of activations. The weights are
// unpacked once per call of the outer loop over vectors and serve all rows.
template <WeightFormat kFormat, ActivationFormat kActivations, CpuExtension kExtension>
HWY_INLINE void MultiplyGroup(const std::byte* group, const GroupActivations& a,
                              float* HWY_RESTRICT acc) {
  constexpr GroupLayout kLayout = GroupLayout::Of(kFormat);
  constexpr bool kU4 = HasU4Codes(kFormat);
  const DF df;
  for (size_t lane = 0; lane < kPanelRows; lane += hn::Lanes(df)) {
    const GroupDot<kU4, kExtension> dot(group, lane);
    const std::byte* scale_base = group + kLayout.codes;
    const VF d = LoadScales(scale_base, lane, kLayout.f32_scales);
    const VF d2 = kLayout.scale_sets == 2 ? LoadScales(scale_base, kPanelRows + lane, true) : d;
    VF m = hn::Zero(df);
    if constexpr (kLayout.minimums) {
      m = LoadScales(scale_base, kLayout.scale_sets * kPanelRows + lane, kLayout.f32_scales);
    } else if constexpr (kU4) {
      m = hn::Mul(d, hn::Set(df, -8.0f));
    }
    for (size_t row = 0; row < a.rows; ++row) {
      // The quads [kBegin, kEnd) of the group: an exact integer, rounded once if it has 16 bits.
      const auto columns = [&]<size_t kBegin, size_t kEnd>() {
        const VF high = dot.template Columns<kBegin, kEnd>(a.codes + row * kGroupColumns);
        if constexpr (kActivations == ActivationFormat::kInt8) return high;
        return hn::MulAdd(high, hn::Set(df, 128.0f),
                          dot.template Columns<kBegin, kEnd>(a.low_codes + row * kGroupColumns));
      };
      float* out = acc + row * kPanelRows + lane;
      VF sum = hn::Load(df, out);
      const VF scale = hn::Set(df, a.scales[row]);
      if constexpr (kLayout.scale_sets == 2) {
        sum = hn::MulAdd(columns.template operator()<0, 4>(), hn::Mul(d, scale), sum);
        sum = hn::MulAdd(columns.template operator()<4, 8>(), hn::Mul(d2, scale), sum);
      } else {
        sum = hn::MulAdd(columns.template operator()<0, 8>(), hn::Mul(d, scale), sum);
      }
      if constexpr (kLayout.minimums || kU4) sum = hn::MulAdd(m, hn::Set(df, a.sums[row]), sum);
      hn::Store(sum, df, out);
    }
  }
}

// `rows` rows of activations of one format from row0 on, here and below.
template <WeightFormat kFormat, CpuExtension kExtension>
void MultiplyPanelQuantized(const Activations& a, const PackedMatrix& w, size_t panel, size_t row0,
                            size_t rows, float* acc) {
  const size_t group_bytes = GroupLayout::Of(kFormat).bytes;
  const std::byte* group = w.group(panel, 0);
  for (size_t g = 0; g < w.groups(); ++g, group += group_bytes) {
    PrefetchAhead(group, group_bytes);
    const GroupActivations part = {.codes = a.codes(g) + row0 * kGroupColumns,
                                   .low_codes = a.low_codes(g) + row0 * kGroupColumns,
                                   .scales = a.scales(g) + row0,
                                   .sums = a.sums(g) + row0,
                                   .rows = rows};
    if (a.format(row0) == ActivationFormat::kInt8) {
      MultiplyGroup<kFormat, ActivationFormat::kInt8, kExtension>(group, part, acc);
    } else {
      MultiplyGroup<kFormat, ActivationFormat::kInt16, kExtension>(group, part, acc);
    }
  }
}

HWY_INLINE VF LoadWeights(WeightFormat format, const std::byte* base, size_t index) {
  const DF df;
  if (format == WeightFormat::kF32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(base) + index);
  }
  if (format == WeightFormat::kF16) return LoadScales(base, index, /*f32=*/false);
  const hn::Rebind<hwy::bfloat16_t, DF> dbf;
  return hn::PromoteTo(df, hn::LoadU(dbf, reinterpret_cast<const hwy::bfloat16_t*>(base) + index));
}

template <WeightFormat kFormat>
void MultiplyPanelFloat(const Activations& a, const PackedMatrix& w, size_t panel, size_t row0,
                        size_t rows, float* acc) {
  const DF df;
  const std::byte* base = w.group(panel, 0);
  for (size_t lane = 0; lane < kPanelRows; lane += hn::Lanes(df)) {
    for (size_t row = 0; row < rows; ++row) {
      const float* x = a.float_row(row0 + row);
      VF sum = hn::Zero(df);
      for (size_t column = 0; column < w.columns; ++column) {
        sum = hn::MulAdd(hn::Set(df, x[column]),
                         LoadWeights(kFormat, base, column * kPanelRows + lane), sum);
      }
      hn::Store(sum, df, acc + row * kPanelRows + lane);
    }
  }
}

template <CpuExtension kExtension>
void MultiplyPanel(const Activations& a, const PackedMatrix& w, size_t panel, size_t row0,
                   size_t rows, float* acc) {
  switch (w.format) {
#define WHIT_CASE(format, multiply) \
  case WeightFormat::format:        \
    return multiply(a, w, panel, row0, rows, acc)
#define WHIT_QUANTIZED_CASE(format) \
  WHIT_CASE(format, (MultiplyPanelQuantized<WeightFormat::format, kExtension>))
#define WHIT_FLOAT_CASE(format) WHIT_CASE(format, MultiplyPanelFloat<WeightFormat::format>)
    WHIT_QUANTIZED_CASE(kU4);
    WHIT_QUANTIZED_CASE(kU4Min);
    WHIT_QUANTIZED_CASE(kU4MinF32);
    WHIT_QUANTIZED_CASE(kS8);
    WHIT_QUANTIZED_CASE(kS8Min);
    WHIT_QUANTIZED_CASE(kS8MinF32);
    WHIT_QUANTIZED_CASE(kS8HalfF32);
    WHIT_FLOAT_CASE(kF16);
    WHIT_FLOAT_CASE(kBF16);
    WHIT_FLOAT_CASE(kF32);
#undef WHIT_FLOAT_CASE
#undef WHIT_QUANTIZED_CASE
#undef WHIT_CASE
  }
}

// The sums of one row, all of a panel's or the first `count` of its last one's.
HWY_INLINE void WritePanelRow(const float* HWY_RESTRICT sums, size_t count, bool accumulate,
                              float* HWY_RESTRICT out) {
  const DF df;
  if (count < kPanelRows) {
    for (size_t i = 0; i < count; ++i) out[i] = accumulate ? out[i] + sums[i] : sums[i];
    return;
  }
  for (size_t i = 0; i < kPanelRows; i += hn::Lanes(df)) {
    const VF sum = hn::Load(df, sums + i);
    hn::StoreU(accumulate ? hn::Add(hn::LoadU(df, out + i), sum) : sum, df, out + i);
  }
}

template <CpuExtension kExtension>
void MultiplyPanelsWith(const Activations& a, size_t row0, size_t rows, const MatMulOutput& output,
                        size_t begin, size_t end) {
  alignas(64) float acc[kRowBlock * kPanelRows];
  for (const size_t rows_end = row0 + rows; row0 < rows_end; row0 += kRowBlock) {
    const size_t count = std::min(kRowBlock, rows_end - row0);
    for (size_t panel = begin; panel < end; ++panel) {
      std::memset(acc, 0, count * kPanelRows * sizeof(float));
      MultiplyPanel<kExtension>(a, *output.weights, panel, row0, count, acc);
      const size_t first = panel * kPanelRows;
      const size_t columns = std::min(kPanelRows, output.weights->rows - first);
      for (size_t row = 0; row < count; ++row) {
        WritePanelRow(acc + row * kPanelRows, columns, output.accumulate,
                      output.out + (row0 + row) * output.stride + first);
      }
    }
  }
}

// Panels [begin, end) of one output.
void MultiplyPanels(const Activations& a, size_t row0, size_t rows, const MatMulOutput& output,
                    size_t begin, size_t end) {
#if HWY_ARCH_ARM_A64
  if (DetectCpuExtension() == CpuExtension::kDotProduct) {
    return MultiplyPanelsWith<CpuExtension::kDotProduct>(a, row0, rows, output, begin, end);
  }
#endif
  MultiplyPanelsWith<CpuExtension::kNone>(a, row0, rows, output, begin, end);
}

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

void QuantizeRow(const float* x, size_t columns, ActivationFormat format,
                 Activations::RowCodes row) {
  for (size_t begin = 0; begin < columns; begin += kGroupColumns) {
    float padded[kGroupColumns];
    const float* group = WholeGroup(x + begin, columns - begin, padded);
    QuantizeGroup(group, format, row.codes, row.low_codes, row.scale, row.sum);
    row.codes += row.code_stride;
    row.low_codes += row.code_stride;
    row.scale += row.scale_stride;
    row.sum += row.scale_stride;
  }
}

// Groups of a row, rounded as FloatToBFloat16 does, `stride` apart.
void RoundRow(const float* HWY_RESTRICT x, size_t columns, size_t stride,
              uint16_t* HWY_RESTRICT to) {
  const DF df;
  const hn::Rebind<uint32_t, DF> du;
  const hn::Rebind<uint16_t, DF> du16;
  for (size_t begin = 0; begin < columns; begin += kGroupColumns, to += stride) {
    float padded[kGroupColumns];
    const float* group = WholeGroup(x + begin, columns - begin, padded);
    for (size_t i = 0; i < kGroupColumns; i += hn::Lanes(df)) {
      const auto bits = hn::Add(hn::BitCast(du, hn::LoadU(df, group + i)), hn::Set(du, 0x8000));
      const auto high = hn::BitCast(hn::Rebind<int32_t, DF>(), hn::ShiftRight<16>(bits));
      hn::StoreU(hn::DemoteTo(du16, high), du16, to + i);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {
namespace {

HWY_EXPORT(MultiplyPanels);
HWY_EXPORT(QuantizeRow);
HWY_EXPORT(RoundRow);

// Chunks of work claimed at a time: small enough to balance, large enough to stream, since the
// first kPrefetchBytes of each are not fetched ahead.
constexpr size_t kMinChunkBytes = 8192;
constexpr size_t kChunksPerThread = 2;

// Panels [begin, end) of one output for all rows: those of one format after another.
void MultiplyRows(const Activations& a, const MatMulOutput& output, size_t begin, size_t end) {
  const bool quantized = IsQuantized(output.weights->format);
  for (size_t row = 0, next; row < a.rows(); row = next) {
    const ActivationFormat format = a.format(row);
    for (next = row + 1; next < a.rows() && (!quantized || a.format(next) == format);) ++next;
#if HWY_ARCH_X86_64
    if (quantized && format == ActivationFormat::kBFloat16) {
      MultiplyPanelsAmx(a, row, next - row, output, begin, end);
      continue;
    }
#endif
    HWY_DYNAMIC_DISPATCH(MultiplyPanels)(a, row, next - row, output, begin, end);
  }
}

}  // namespace

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

void Activations::Reset(size_t rows, size_t columns) {
  rows_ = rows;
  columns_ = columns;
  floats_ = nullptr;
}

void Activations::SetRow(size_t row, const float* x, ActivationFormat format) {
  formats_[row] = format;
  if (format == ActivationFormat::kBFloat16) {
    HWY_DYNAMIC_DISPATCH(RoundRow)
    (x, columns_, amx::kTileElements,
     bfloat16_.get() + row / amx::kTileRows * groups() * amx::kTileElements +
         row % amx::kTileRows * kGroupColumns);
    return;
  }
  HWY_DYNAMIC_DISPATCH(QuantizeRow)
  (x, columns_, format,
   {.codes = codes_.get() + row * kGroupColumns,
    .low_codes = low_codes_.get() + row * kGroupColumns,
    .scale = scales_.get() + row,
    .sum = sums_.get() + row,
    .code_stride = rows_ * kGroupColumns,
    .scale_stride = rows_});
}

void MatMul(const Activations& activations, absl::Span<const MatMulOutput> outputs,
            ThreadPool& pool) {
  size_t panels = 0, bytes = 0;
  for (const MatMulOutput& output : outputs) {
    panels += output.weights->panels();
    bytes += output.weights->bytes();
  }
  const size_t chunks =
      std::max<size_t>(1, std::min(bytes / kMinChunkBytes, kChunksPerThread * pool.num_threads()));
  pool.ParallelFor(panels, std::max<size_t>(1, panels / chunks),
                   [&](size_t begin, size_t end, int) {
                     // [begin, end) counts through the panels of all outputs.
                     for (const MatMulOutput& output : outputs) {
                       const size_t count = output.weights->panels();
                       if (begin < count) {
                         MultiplyRows(activations, output, begin, std::min(end, count));
                       }
                       if (end <= count) return;
                       begin = begin > count ? begin - count : 0;
                       end -= count;
                     }
                   });
}

double MatMulReference(const Activations& activations, size_t row, const PackedMatrix& weights,
                       size_t weight_row) {
  std::vector<float> w(weights.columns);
  weights.UnpackRow(weight_row, w.data());
  double sum = 0;
  for (size_t c = 0; c < weights.columns; ++c) {
    const size_t g = c / kGroupColumns;
    const size_t i = row * kGroupColumns + c % kGroupColumns;
    if (!IsQuantized(weights.format)) {
      sum += double{activations.float_row(row)[c]} * w[c];
    } else if (activations.format(row) == ActivationFormat::kBFloat16) {
      sum += double{BFloat16ToFloat(activations.bfloat16(row, c))} *
             BFloat16ToFloat(FloatToBFloat16(w[c]));
    } else {
      double x = activations.codes(g)[i];
      if (activations.format(row) == ActivationFormat::kInt16) {
        x = 128 * x + activations.low_codes(g)[i];
      }
      sum += x * activations.scales(g)[row] * w[c];
    }
  }
  return sum;
}

}  // namespace whit
#endif  // HWY_ONCE
