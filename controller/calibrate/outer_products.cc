#include "controller/calibrate/outer_products.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "controller/calibrate/outer_products.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, kOuterCols>;

// kOuterRows rows of c, and one or two vectors of each: their sums stay in registers.
template <bool kTwo>
HWY_INLINE void MultiplyTile(D d, const float* HWY_RESTRICT a, size_t a_stride,
                             const float* HWY_RESTRICT b, size_t b_stride, size_t depth,
                             float* HWY_RESTRICT c, size_t c_stride) {
  const size_t lanes = hn::Lanes(d);
  auto l0 = hn::Zero(d), l1 = l0, l2 = l0, l3 = l0, l4 = l0, l5 = l0, l6 = l0, l7 = l0;
  auto r0 = l0, r1 = l0, r2 = l0, r3 = l0, r4 = l0, r5 = l0, r6 = l0, r7 = l0;
  for (size_t p = 0; p < depth; ++p, a += a_stride, b += b_stride) {
    const auto left = hn::LoadU(d, b);
    const auto right = kTwo ? hn::LoadU(d, b + lanes) : left;
    const auto add = [&](size_t row, auto& l, auto& r) HWY_ATTR {
      const auto x = hn::Set(d, a[row]);
      l = hn::MulAdd(x, left, l);
      if constexpr (kTwo) r = hn::MulAdd(x, right, r);
    };
    add(0, l0, r0);
    add(1, l1, r1);
    add(2, l2, r2);
    add(3, l3, r3);
    add(4, l4, r4);
    add(5, l5, r5);
    add(6, l6, r6);
    add(7, l7, r7);
  }
  const auto store = [&](auto l, auto r) HWY_ATTR {
    hn::StoreU(l, d, c);
    if constexpr (kTwo) hn::StoreU(r, d, c + lanes);
    c += c_stride;
  };
  store(l0, r0);
  store(l1, r1);
  store(l2, r2);
  store(l3, r3);
  store(l4, r4);
  store(l5, r5);
  store(l6, r6);
  store(l7, r7);
}

void MultiplyOuter(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth,
                   size_t rows, size_t cols, float* c, size_t c_stride) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  for (size_t col = 0; col < cols;) {
    const bool two = col + 2 * lanes <= cols;
    for (size_t row = 0; row < rows; row += kOuterRows) {
      float* to = c + row * c_stride + col;
      if (two) {
        MultiplyTile<true>(d, a + row, a_stride, b + col, b_stride, depth, to, c_stride);
      } else {
        MultiplyTile<false>(d, a + row, a_stride, b + col, b_stride, depth, to, c_stride);
      }
    }
    col += two ? 2 * lanes : lanes;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(MultiplyOuter);

void MultiplyOuter(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t depth,
                   size_t rows, size_t cols, float* c, size_t c_stride) {
  HWY_DYNAMIC_DISPATCH(MultiplyOuter)
  (a, a_stride, b, b_stride, depth, rows, cols, c, c_stride);
}

}  // namespace whit
#endif  // HWY_ONCE
