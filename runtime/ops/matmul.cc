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
void MultiplyPartWith(const Activations& a, const MatMulOutput& output, const MatMulPart& part) {
  alignas(64) float acc[kRowBlock * kPanelRows];
  for (size_t block = 0; block < part.rows; block += kRowBlock) {
    const size_t count = std::min(kRowBlock, part.rows - block);
    for (size_t i = 0; i < part.panels; ++i) {
      const size_t panel = part.first_panel + i;
      std::memset(acc, 0, count * kPanelRows * sizeof(float));
      MultiplyPanel<kExtension>(a, *output.weights, panel, part.first_row + block, count, acc);
      const size_t columns = std::min(kPanelRows, output.weights->rows - panel * kPanelRows);
      for (size_t row = 0; row < count; ++row) {
        WritePanelRow(acc + row * kPanelRows, columns, output.accumulate,
                      output.out + (block + row) * output.stride + i * kPanelRows);
      }
    }
  }
}

// Of rows of one format.
void MultiplyPart(const Activations& a, const MatMulOutput& output, const MatMulPart& part) {
#if HWY_ARCH_ARM_A64
  if (DetectCpuExtension() == CpuExtension::kDotProduct) {
    return MultiplyPartWith<CpuExtension::kDotProduct>(a, output, part);
  }
#endif
  MultiplyPartWith<CpuExtension::kNone>(a, output, part);
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

HWY_EXPORT(MultiplyPart);

// Chunks of work claimed at a time: small enough to balance, large enough to stream, since the
// first kPrefetchBytes of each are not fetched ahead.
constexpr size_t kMinChunkBytes = 8192;
constexpr size_t kChunksPerThread = 2;

}  // namespace

void MultiplyPart(const Activations& a, const MatMulOutput& output, const MatMulPart& part) {
  const bool quantized = IsQuantized(output.weights->format);
  const size_t end = part.first_row + part.rows;
  // Rows of one format after another.
  for (size_t row = part.first_row, next; row < end; row = next) {
    const ActivationFormat format = a.format(row);
    for (next = row + 1; next < end && (!quantized || a.format(next) == format);) ++next;
    MatMulPart run = part;
    run.first_row = row;
    run.rows = next - row;
    MatMulOutput to = output;
    to.out += (row - part.first_row) * output.stride;
#if HWY_ARCH_X86_64
    if (quantized && format == ActivationFormat::kBFloat16) {
      MultiplyPartAmx(a, to, run);
      continue;
    }
#endif
    HWY_DYNAMIC_DISPATCH(MultiplyPart)(a, to, run);
  }
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
                     for (MatMulOutput output : outputs) {
                       const size_t count = output.weights->panels();
                       if (begin < count) {
                         output.out += begin * kPanelRows;
                         MultiplyPart(activations, output,
                                      {.first_row = 0,
                                       .rows = activations.rows(),
                                       .first_panel = begin,
                                       .panels = std::min(end, count) - begin});
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
