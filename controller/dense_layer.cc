#include "controller/dense_layer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "controller/dense_layer.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace whit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

// Two vectors of outputs of `kRows` rows: with four rows, eight sums are under way at once, which
// covers the latency of a multiply-add and fits 16 registers.
template <size_t kRows>
HWY_INLINE void ReluTile(const float* HWY_RESTRICT in, size_t inputs, const float* HWY_RESTRICT w,
                         const float* HWY_RESTRICT bias, size_t outputs, float* HWY_RESTRICT out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  for (size_t o = 0; o < outputs; o += 2 * lanes) {
    VF low[kRows], high[kRows];
    for (size_t row = 0; row < kRows; ++row) {
      low[row] = hn::LoadU(d, bias + o);
      high[row] = hn::LoadU(d, bias + o + lanes);
    }
    for (size_t i = 0; i < inputs; ++i) {
      const VF w_low = hn::LoadU(d, w + i * outputs + o);
      const VF w_high = hn::LoadU(d, w + i * outputs + o + lanes);
      for (size_t row = 0; row < kRows; ++row) {
        const VF x = hn::Set(d, in[row * inputs + i]);
        low[row] = hn::MulAdd(x, w_low, low[row]);
        high[row] = hn::MulAdd(x, w_high, high[row]);
      }
    }
    for (size_t row = 0; row < kRows; ++row) {
      hn::StoreU(hn::Max(low[row], hn::Zero(d)), d, out + row * outputs + o);
      hn::StoreU(hn::Max(high[row], hn::Zero(d)), d, out + row * outputs + o + lanes);
    }
  }
}

void Relu(const float* in, size_t rows, size_t inputs, const float* weights, const float* bias,
          size_t outputs, float* out) {
  size_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    ReluTile<4>(in + row * inputs, inputs, weights, bias, outputs, out + row * outputs);
  }
  for (; row < rows; ++row) {
    ReluTile<1>(in + row * inputs, inputs, weights, bias, outputs, out + row * outputs);
  }
}

template <size_t kOutputs>
void LinearRows(const float* HWY_RESTRICT in, size_t rows, size_t inputs,
                const float* HWY_RESTRICT weights, const float* HWY_RESTRICT bias,
                float* HWY_RESTRICT out) {
  const DF d;
  for (size_t row = 0; row < rows; ++row) {
    VF sums[kOutputs];
    for (VF& sum : sums) sum = hn::Zero(d);
    for (size_t i = 0; i < inputs; i += hn::Lanes(d)) {
      const VF x = hn::LoadU(d, in + row * inputs + i);
      VF w[kOutputs];
      if constexpr (kOutputs == 2) {
        hn::LoadInterleaved2(d, weights + i * kOutputs, w[0], w[1]);
      } else {
        hn::LoadInterleaved4(d, weights + i * kOutputs, w[0], w[1], w[2], w[3]);
      }
      for (size_t o = 0; o < kOutputs; ++o) sums[o] = hn::MulAdd(x, w[o], sums[o]);
    }
    for (size_t o = 0; o < kOutputs; ++o) {
      out[row * kOutputs + o] = bias[o] + hn::GetLane(hn::SumOfLanes(d, sums[o]));
    }
  }
}

void Linear(const float* in, size_t rows, size_t inputs, const float* weights, const float* bias,
            size_t outputs, float* out) {
  if (outputs == 2) {
    LinearRows<2>(in, rows, inputs, weights, bias, out);
  } else {
    LinearRows<4>(in, rows, inputs, weights, bias, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace whit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace whit {

HWY_EXPORT(Relu);
HWY_EXPORT(Linear);

void DenseRelu(const float* in, size_t rows, size_t inputs, const float* weights, const float* bias,
               size_t outputs, float* out) {
  HWY_DYNAMIC_DISPATCH(Relu)(in, rows, inputs, weights, bias, outputs, out);
}

void DenseLinear(const float* in, size_t rows, size_t inputs, const float* weights,
                 const float* bias, size_t outputs, float* out) {
  HWY_DYNAMIC_DISPATCH(Linear)(in, rows, inputs, weights, bias, outputs, out);
}

}  // namespace whit
#endif  // HWY_ONCE
