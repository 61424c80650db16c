#include "runtime/ops/attention_range.h"

#include "runtime/ops/cpu_extension.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/attention_range.cc"
#define HWY_WANT_AVX3_DL 1
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"
#include "runtime/ops/tile_attention-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET == HWY_AVX3_DL  // as in quad_dot-inl.h
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#endif
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <CpuExtension kExtension>
HWY_INLINE void AttendRangeWith(const RangeView& range, const QueryTile& tile, Partial* partials,
                                RangeProbabilities* p) {
  switch (range.head_dim) {
    case 64:
      return tile_attention::AttendTileOfDim<kExtension, 64>(range, tile, partials, p);
    case 128:
      return tile_attention::AttendTileOfDim<kExtension, 128>(range, tile, partials, p);
    default:
      return tile_attention::AttendTileOfDim<kExtension, 0>(range, tile, partials, p);
  }
}

void AttendRangeT(const RangeView& range, const QueryTile& tile, Partial* partials,
                  RangeProbabilities* p) {
#if HWY_ARCH_ARM_A64
  if (DetectCpuExtension() == CpuExtension::kDotProduct) {
    return AttendRangeWith<CpuExtension::kDotProduct>(range, tile, partials, p);
  }
#endif
  AttendRangeWith<CpuExtension::kNone>(range, tile, partials, p);
}

// In the next three n is a multiple of 16, as head_dim and the slots of pages are.
using DF = hn::CappedTag<float, 16>;

void ScaleAndAddT(float* HWY_RESTRICT into, float keep, const float* HWY_RESTRICT add, float factor,
                  size_t n) {
  const DF df;
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const auto kept = hn::Mul(hn::LoadU(df, into + i), hn::Set(df, keep));
    hn::StoreU(hn::MulAdd(hn::LoadU(df, add + i), hn::Set(df, factor), kept), df, into + i);
  }
}

float SumOfSquaresT(const float* p, size_t n) {
  const DF df;
  auto sum = hn::Zero(df);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const auto x = hn::LoadU(df, p + i);
    sum = hn::MulAdd(x, x, sum);
  }
  return hn::GetLane(hn::SumOfLanes(df, sum));
}

void AddReceivedT(const RangeProbabilities* p, size_t slot, absl::Span<const float> factors,
                  const float* weights, size_t n, const ReceivedAttention& received) {
  const DF df;
  const auto least = hn::Set(df, 1e-18f);  // squares that are not subnormal
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    auto sum = hn::LoadU(df, received.sum + i);
    auto squares = hn::LoadU(df, received.squares + i);
    auto recent = hn::LoadU(df, received.recent + i);
    for (size_t query = 0; query < factors.size(); ++query) {
      auto a = hn::Mul(hn::LoadU(df, p[query] + slot + i), hn::Set(df, factors[query]));
      a = hn::IfThenElseZero(hn::Ge(a, least), a);
      sum = hn::Add(sum, a);
      squares = hn::MulAdd(a, a, squares);
      recent = hn::MulAdd(a, hn::Set(df, weights[query]), recent);
    }
    hn::StoreU(sum, df, received.sum + i);
    hn::StoreU(squares, df, received.squares + i);
    hn::StoreU(recent, df, received.recent + i);
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

HWY_EXPORT(AttendRangeT);
HWY_EXPORT(ScaleAndAddT);
HWY_EXPORT(SumOfSquaresT);
HWY_EXPORT(AddReceivedT);

void AttendRange(const RangeView& range, const QueryTile& tile, Partial* partials,
                 RangeProbabilities* p) {
  HWY_DYNAMIC_DISPATCH(AttendRangeT)(range, tile, partials, p);
}

void ScaleAndAdd(float* into, float keep, const float* add, float factor, size_t n) {
  HWY_DYNAMIC_DISPATCH(ScaleAndAddT)(into, keep, add, factor, n);
}

float SumOfSquares(const float* p, size_t n) { return HWY_DYNAMIC_DISPATCH(SumOfSquaresT)(p, n); }

void AddReceived(const RangeProbabilities* p, size_t slot, absl::Span<const float> factors,
                 const float* weights, size_t n, const ReceivedAttention& received) {
  HWY_DYNAMIC_DISPATCH(AddReceivedT)(p, slot, factors, weights, n, received);
}

}  // namespace whit
#endif  // HWY_ONCE
