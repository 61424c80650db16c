// 2^x, for each SIMD target. Included once per target.
#if defined(WHIT_RUNTIME_OPS_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WHIT_RUNTIME_OPS_EXP2_INL_H_
#undef WHIT_RUNTIME_OPS_EXP2_INL_H_
#else
#define WHIT_RUNTIME_OPS_EXP2_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {

// 2^x for x <= 127, within a relative error of 1e-7; 0 below -100, so that nothing becomes
// subnormal, which is slow. A third of the instructions of Highway's Exp, which takes any x.
template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> Exp2(D d, hwy::HWY_NAMESPACE::Vec<D> x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<int32_t, D> di;
  // Added to a small number, this leaves its nearest integer in the lowest bits.
  const auto round = hn::Set(d, 0x1.8p23f);
  const auto rounded = hn::Add(x, round);
  const auto f = hn::Sub(x, hn::Sub(rounded, round));
  // The polynomial of degree 5 with the least relative error on [-1/2, 1/2].
  auto y = hn::Set(d, 0.00132764707f);
  y = hn::MulAdd(y, f, hn::Set(d, 0.00967554132f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.0555071328f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.240221197f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.693146967f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.00000007f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, rounded));
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -100.0f)),
                            hn::BitCast(d, hn::Add(hn::BitCast(di, y), exponent)));
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#endif  // WHIT_RUNTIME_OPS_EXP2_INL_H_
