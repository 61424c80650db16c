#include "runtime/ops/attention_queries.h"

#include <algorithm>

#include "kvpool/quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/attention_queries.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 15-bit integers q = unit * (128 * high + low); max|q| becomes 127 * 128.
void QuantizeQuery(const float* HWY_RESTRICT q, size_t head_dim, int8_t* HWY_RESTRICT high,
                   int8_t* HWY_RESTRICT low, float* unit, int32_t* high_sum, int32_t* low_sum) {
  using DF = hn::CappedTag<float, 16>;
  using DI = hn::Rebind<int32_t, DF>;
  const DF df;
  const DI di;
  const hn::Rebind<int8_t, DF> d8;
  auto largest = hn::Zero(df);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(df)) {
    largest = hn::Max(largest, hn::Abs(hn::LoadU(df, q + i)));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  const auto inverse = hn::Set(df, max > 0 ? 127.0f * 128.0f / max : 0.0f);
  auto highs = hn::Zero(di), lows = hn::Zero(di);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(df)) {
    const auto code = hn::NearestInt(hn::Mul(hn::LoadU(df, q + i), inverse));
    const auto h = hn::ShiftRight<7>(hn::Add(code, hn::Set(di, 64)));
    const auto l = hn::Sub(code, hn::ShiftLeft<7>(h));
    highs = hn::Add(highs, h);
    lows = hn::Add(lows, l);
    hn::StoreU(hn::DemoteTo(d8, h), d8, high + i);
    hn::StoreU(hn::DemoteTo(d8, l), d8, low + i);
  }
  *unit = max / (127.0f * 128.0f);
  *high_sum = hn::GetLane(hn::SumOfLanes(di, highs));
  *low_sum = hn::GetLane(hn::SumOfLanes(di, lows));
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(QuantizeQuery);

AttentionQueries::AttentionQueries(const AttentionShape& shape, size_t max_rows)
    : shape_(shape), scalars_(max_rows * shape.num_heads) {
  const size_t elements = max_rows * shape.num_heads * shape.head_dim;
  rotated_ = hwy::AllocateAligned<float>(elements);
  high_ = hwy::AllocateAligned<int8_t>(elements);
  low_ = hwy::AllocateAligned<int8_t>(elements);
}

void AttentionQueries::SetRow(size_t row, const float* q, bool tiles) {
  const size_t d = shape_.head_dim;
  for (int head = 0; head < shape_.num_heads; ++head) {
    const size_t index = row * shape_.num_heads + head;
    float* rotated = rotated_.get() + index * d;
    std::copy_n(q + head * d, d, rotated);
    RotateHadamard(rotated, shape_.head_dim);
    if (tiles) continue;
    Scalars& s = scalars_[index];
    HWY_DYNAMIC_DISPATCH(QuantizeQuery)
    (rotated, d, high_.get() + index * d, low_.get() + index * d, &s.unit, &s.high_sum, &s.low_sum);
  }
}

AttentionQueries::View AttentionQueries::view(size_t row, int head) const {
  const size_t index = row * shape_.num_heads + head;
  const size_t offset = index * shape_.head_dim;
  const Scalars& s = scalars_[index];
  return {.rotated = rotated_.get() + offset,
          .high = high_.get() + offset,
          .low = low_.get() + offset,
          .unit = s.unit,
          .high_sum = s.high_sum,
          .low_sum = s.low_sum};
}

}  // namespace whit
#endif  // HWY_ONCE
