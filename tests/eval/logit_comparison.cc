#include "tests/eval/logit_comparison.h"

#include <algorithm>

#include "runtime/ops/logits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/eval/logit_comparison.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit::eval {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements whose products are summed in floats before the sum goes on in doubles.
constexpr size_t kSumBlock = 512;

// sum p (x - y) / sum p with p = exp(x - shift): the mean difference under the first row's
// distribution. `shift` is the row's log-sum-exp, so the second sum is 1 but for rounding.
double MeanDifference(const float* x, const float* y, size_t n, float shift) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  const V vshift = hn::Set(d, shift);
  double weighted = 0, total = 0;
  for (size_t begin = 0; begin < n; begin += kSumBlock) {
    const size_t end = std::min(n, begin + kSumBlock);
    V weighted_block = hn::Zero(d), total_block = hn::Zero(d);
    const auto add = [&](V vx, V vy, auto mask) HWY_ATTR {
      // Exp is not meant for what lies far below its smallest result.
      const V p =
          hn::IfThenElseZero(mask, hn::Exp(d, hn::Max(hn::Sub(vx, vshift), hn::Set(d, -100.0f))));
      weighted_block = hn::MulAdd(p, hn::Sub(vx, vy), weighted_block);
      total_block = hn::Add(total_block, p);
    };
    size_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      add(hn::LoadU(d, x + i), hn::LoadU(d, y + i), hn::FirstN(d, lanes));
    }
    if (i < end) {
      HWY_ALIGN float tail_x[HWY_MAX_BYTES / sizeof(float)] = {};
      HWY_ALIGN float tail_y[HWY_MAX_BYTES / sizeof(float)] = {};
      std::copy(x + i, x + end, tail_x);
      std::copy(y + i, y + end, tail_y);
      add(hn::Load(d, tail_x), hn::Load(d, tail_y), hn::FirstN(d, end - i));
    }
    weighted += hn::GetLane(hn::SumOfLanes(d, weighted_block));
    total += hn::GetLane(hn::SumOfLanes(d, total_block));
  }
  return weighted / total;
}

}  // namespace HWY_NAMESPACE
}  // namespace whit::eval
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit::eval {

HWY_EXPORT(MeanDifference);

LogitRow MakeLogitRow(const float* logits, size_t size) {
  LogitRow row = {.logits = logits, .size = size, .arg_max = ArgMax(logits, size)};
  row.log_sum_exp = LogSumExp(logits, size, row.arg_max);
  return row;
}

double KlDivergence(const LogitRow& reference, const LogitRow& other) {
  const double difference = HWY_DYNAMIC_DISPATCH(MeanDifference)(
      reference.logits, other.logits, reference.size, static_cast<float>(reference.log_sum_exp));
  return difference - (reference.log_sum_exp - other.log_sum_exp);
}

}  // namespace whit::eval
#endif  // HWY_ONCE
