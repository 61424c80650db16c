#include "runtime/ops/elementwise.h"

#include <cmath>
#include <numbers>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ops/elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"
#include "runtime/ops/exp2-inl.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void RmsNorm(const float* x, const float* weight, float epsilon, size_t n, float* out) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto squares = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, squares));
  for (; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + epsilon);
  const auto vscale = hn::Set(d, scale);
  for (i = 0; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), vscale), hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

template <class D>
HWY_INLINE hn::Vec<D> SiluMultiplyVector(D d, hn::Vec<D> gate, hn::Vec<D> up) {
  // Past 2^100 the quotient is 0 to float precision.
  const auto exponent =
      hn::Min(hn::Mul(gate, hn::Set(d, -std::numbers::log2e_v<float>)), hn::Set(d, 100.0f));
  return hn::Mul(hn::Div(gate, hn::Add(hn::Set(d, 1.0f), Exp2(d, exponent))), up);
}

void SiluMultiply(float* HWY_RESTRICT gate, const float* HWY_RESTRICT up, size_t rows, size_t n,
                  size_t stride) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const size_t lanes = hn::Lanes(d);
  for (size_t row = 0; row < rows; ++row, gate += stride, up += stride) {
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      hn::StoreU(SiluMultiplyVector(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, gate + i);
    }
    for (; i < n; ++i) {
      hn::StoreU(SiluMultiplyVector(d1, hn::LoadU(d1, gate + i), hn::LoadU(d1, up + i)), d1,
                 gate + i);
    }
  }
}

void RotatePairs(float* x, size_t dims, const float* cosines, const float* sines) {
  const hn::CappedTag<float, 16> d;  // dims is even, and a multiple of 16 for every real model
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  if (lanes > 1) {
    for (; i + lanes <= dims; i += lanes) {
      const auto v = hn::LoadU(d, x + i);
      const auto rotated = hn::MulAdd(hn::Reverse2(d, v), hn::LoadU(d, sines + i),
                                      hn::Mul(v, hn::LoadU(d, cosines + i)));
      hn::StoreU(rotated, d, x + i);
    }
  }
  for (; i < dims; i += 2) {
    const float a = x[i], b = x[i + 1];
    x[i] = a * cosines[i] + b * sines[i];
    x[i + 1] = b * cosines[i + 1] + a * sines[i + 1];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(SiluMultiply);
HWY_EXPORT(RotatePairs);

void RmsNorm(const float* x, const float* weight, float epsilon, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, epsilon, n, out);
}

void SiluMultiply(float* gate, const float* up, size_t rows, size_t n, size_t stride) {
  HWY_DYNAMIC_DISPATCH(SiluMultiply)(gate, up, rows, n, stride);
}

void RotatePairs(float* x, size_t dims, const float* cosines, const float* sines) {
  HWY_DYNAMIC_DISPATCH(RotatePairs)(x, dims, cosines, sines);
}

}  // namespace whit
#endif  // HWY_ONCE
