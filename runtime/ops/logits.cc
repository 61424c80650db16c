#include "runtime/ops/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/logits.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Elements whose exponentials are summed in floats before the sum goes on in doubles.
constexpr size_t kSumBlock = 512;

float Max(const float* x, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  float max = std::numeric_limits<float>::lowest();
  size_t i = 0;
  if (n >= 2 * lanes) {
    V max0 = hn::Set(d, max), max1 = max0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
      const V v0 = hn::LoadU(d, x + i), v1 = hn::LoadU(d, x + i + lanes);
      max0 = hn::IfThenElse(hn::Gt(v0, max0), v0, max0);  // a NaN is never greater
      max1 = hn::IfThenElse(hn::Gt(v1, max1), v1, max1);
    }
    max = hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
  }
  for (; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

size_t ArgMax(const float* x, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const float max = Max(x, n);
  const V vmax = hn::Set(d, max);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    if (!hn::AllFalse(d, hn::Eq(hn::LoadU(d, x + i), vmax))) break;
  }
  for (; i < n; ++i) {
    if (x[i] == max) return i;
  }
  return 0;  // nothing but NaN and -inf
}

HWY_INLINE V WeightsOf(V x, V shift, V scale) {
  const D d;
  const V lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  const V finite = hn::Min(hn::IfThenElse(hn::Gt(x, lowest), x, lowest), hn::Neg(lowest));
  // Below -104 the exponential is 0 in floats; Exp is not meant for what lies far below.
  return hn::Exp(d, hn::Max(hn::Mul(hn::Sub(finite, shift), scale), hn::Set(d, -128.0f)));
}

// Calls use(i, weights of x[i], …, x[i + lanes - 1]) for whole vectors, use(i, …, count) for the
// rest, which is padded with elements that weigh nothing; returns the sum.
template <class Use>
HWY_INLINE double SumWeights(const float* x, size_t n, float shift, float scale, Use use) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const V vshift = hn::Set(d, shift), vscale = hn::Set(d, scale);
  double sum = 0;
  for (size_t begin = 0; begin < n; begin += kSumBlock) {
    const size_t end = std::min(n, begin + kSumBlock);
    V block = hn::Zero(d);
    size_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      const V weights = WeightsOf(hn::LoadU(d, x + i), vshift, vscale);
      block = hn::Add(block, weights);
      use(i, weights, lanes);
    }
    if (i < end) {
      HWY_ALIGN float tail[HWY_MAX_BYTES / sizeof(float)];
      for (size_t j = 0; j < lanes; ++j) tail[j] = i + j < end ? x[i + j] : shift;
      V weights = WeightsOf(hn::Load(d, tail), vshift, vscale);
      weights = hn::IfThenElseZero(hn::FirstN(d, end - i), weights);
      block = hn::Add(block, weights);
      use(i, weights, end - i);
    }
    sum += hn::GetLane(hn::SumOfLanes(d, block));
  }
  return sum;
}

double ExpWeights(const float* x, size_t n, float shift, float scale, float* out) {
  const D d;
  return SumWeights(x, n, shift, scale, [&](size_t i, V weights, size_t count) HWY_ATTR {
    if (count == hn::Lanes(d)) {
      hn::StoreU(weights, d, out + i);
    } else {
      HWY_ALIGN float tail[HWY_MAX_BYTES / sizeof(float)];
      hn::Store(weights, d, tail);
      std::copy(tail, tail + count, out + i);
    }
  });
}

double ExpSum(const float* x, size_t n, float shift) {
  return SumWeights(x, n, shift, /*scale=*/1.0f, [](size_t, V, size_t) HWY_ATTR {});
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(ArgMax);
HWY_EXPORT(ExpWeights);
HWY_EXPORT(ExpSum);

float FiniteLogit(float x) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  return x > -kLargest ? std::min(x, kLargest) : -kLargest;
}

size_t ArgMax(const float* x, size_t n) { return HWY_DYNAMIC_DISPATCH(ArgMax)(x, n); }

double ExpWeights(const float* x, size_t n, size_t max, float scale, float* out) {
  // A scale of infinity would make NaN of the largest's 0.
  return HWY_DYNAMIC_DISPATCH(ExpWeights)(x, n, FiniteLogit(x[max]), FiniteLogit(scale), out);
}

double LogSumExp(const float* x, size_t n, size_t max) {
  const float shift = FiniteLogit(x[max]);
  return shift + std::log(HWY_DYNAMIC_DISPATCH(ExpSum)(x, n, shift));
}

SoftmaxSummary SummarizeSoftmax(const float* x, size_t n) {
  const size_t max = ArgMax(x, n);
  const double shift = FiniteLogit(x[max]);
  std::vector<float> weights(n);
  const double sum = ExpWeights(x, n, max, /*scale=*/1.0f, weights.data());
  // With w = exp(x - max): -sum p ln p = ln(sum w) - sum w (x - max) / sum w.
  double moment = 0;
  for (size_t i = 0; i < n; ++i) {
    if (weights[i] > 0) moment += weights[i] * (FiniteLogit(x[i]) - shift);
  }
  return {.entropy = std::log(sum) - moment / sum, .largest = 1 / sum};
}

}  // namespace whit
#endif  // HWY_ONCE
