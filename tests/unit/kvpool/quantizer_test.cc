#include "kvpool/quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kvpool/page.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

constexpr int kHeadDims[] = {16, 48, 64, 80, 128, 256};
constexpr Rung kQuantized[] = {Rung::kK2V2, Rung::kK4V2, Rung::kK4V4, Rung::kK8V4, Rung::kK8V8};

std::vector<float> Gaussian(size_t n, std::mt19937& rng) {
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

double Norm2(const float* x, size_t n) { return std::inner_product(x, x + n, x, 0.0); }

TEST(RotateHadamardTest, IsTheOrthonormalMatrixAndItsOwnInverse) {
  ForEachSimdTarget([] {
    for (int d : kHeadDims) {
      const int order = d & -d;
      std::mt19937 rng(d);
      const std::vector<float> x = Gaussian(d, rng);
      std::vector<float> y = x;
      RotateHadamard(y.data(), d);
      for (int i = 0; i < d; ++i) {
        double expected = 0;
        for (int j = 0; j < order; ++j) {
          const int sign = __builtin_popcount((i % order) & j) % 2 == 0 ? 1 : -1;
          expected += sign * x[i / order * order + j] / std::sqrt(double{1} * order);
        }
        ASSERT_NEAR(y[i], expected, 1e-5) << d << " " << i;
      }
      RotateHadamard(y.data(), d);
      for (int i = 0; i < d; ++i) ASSERT_NEAR(y[i], x[i], 1e-5);
    }
  });
}

// Relative squared error of the codes under the best possible scale.
double LeastSquaresError(int d, int bits) {
  std::mt19937 rng(bits);
  double error = 0;
  constexpr int kVectors = 3000;
  std::vector<uint8_t> codes(d);
  for (int n = 0; n < kVectors; ++n) {
    const std::vector<float> x = Gaussian(d, rng);
    float scale;
    QuantizeVector(x.data(), d, bits, codes.data(), &scale);
    double xq = 0, qq = 0;
    for (int i = 0; i < d; ++i) {
      const double q = codes[i] - ((1 << bits) - 1) / 2.0;
      xq += x[i] * q;
      qq += q * q;
    }
    EXPECT_NEAR(scale, std::sqrt(Norm2(x.data(), d) / qq), 1e-3 * scale);
    error += 1 - xq * xq / qq / Norm2(x.data(), d);
  }
  return error / kVectors;
}

// 0.113 and 0.0088 are the uniform quantizer's least errors on Gaussian data.
TEST(QuantizeVectorTest, CodesAreWithinFivePercentOfTheBestOnGaussianData) {
  ForEachSimdTarget([] {
    EXPECT_LT(LeastSquaresError(64, 2), 0.113 * 1.05);
    EXPECT_LT(LeastSquaresError(64, 4), 0.0088 * 1.05);
    EXPECT_LT(LeastSquaresError(64, 8), 4e-5);
  });
}

TEST(QuantizeVectorTest, ZeroAndTinyVectorsHaveScaleZero) {
  const std::vector<float> zero(64, 0.0f), tiny(64, 1e-30f);
  std::vector<uint8_t> codes(64, 7);
  float scale = 1;
  for (const auto& x : {zero, tiny}) {
    QuantizeVector(x.data(), 64, 4, codes.data(), &scale);
    EXPECT_EQ(scale, 0.0f);
  }
}

// Layout written out independently of the implementation's packing.
int CodeAt(const std::byte* page, Rung rung, int d, int token, int dim, bool value) {
  const int bits = value ? ValueBits(rung) : KeyBits(rung);
  const QuantizedPageLayout layout(d, KeyBits(rung), ValueBits(rung));
  size_t row, byte;
  int shift;
  if (value) {
    const int planes = bits / 2, quad = token / 4;
    row = dim / 16 * planes + quad % planes;
    byte = layout.value_codes + row * 64 + 4 * (dim % 16) + token % 4;
    shift = bits * (quad / planes);
  } else {
    const int rows = d * bits / 32, quad = dim / 4;
    byte = quad % rows * 64 + 4 * token + dim % 4;
    shift = bits * (quad / rows);
  }
  return (static_cast<int>(page[byte]) >> shift) & ((1 << bits) - 1);
}

TEST(WriteTokensTest, PagesHaveTheDocumentedLayoutAndReadBack) {
  ForEachSimdTarget([] {
    for (int d : kHeadDims) {
      std::mt19937 rng(d);
      const size_t stride = d + 5;
      const std::vector<float> keys = Gaussian(16 * stride, rng),
                               values = Gaussian(16 * stride, rng);
      const std::vector<float> mean = Gaussian(d, rng);
      for (Rung rung : kQuantized) {
        std::vector<std::byte> page(PageBytes(rung, d));
        const auto write = [&](int slot, int count) {
          WriteTokens(
              page.data(), rung, d, slot, count,
              {.keys = &keys[slot * stride], .values = &values[slot * stride], .stride = stride},
              mean.data());
        };
        write(0, 5);
        write(5, 1);
        write(6, 9);  // the last slot stays empty
        std::vector<float> k(15 * d), v(15 * d);
        ReadTokens(page.data(), rung, d, 15, mean.data(), k.data(), v.data());
        std::vector<uint8_t> codes(d);
        for (int token = 0; token < 15; ++token) {
          std::vector<float> centred(d);
          for (int i = 0; i < d; ++i) centred[i] = keys[token * stride + i] - mean[i];
          float scale;
          QuantizeVector(centred.data(), d, KeyBits(rung), codes.data(), &scale);
          for (int i = 0; i < d; ++i) {
            ASSERT_EQ(CodeAt(page.data(), rung, d, token, i, false), codes[i]);
            const double level = codes[i] - ((1 << KeyBits(rung)) - 1) / 2.0;
            ASSERT_NEAR(k[token * d + i], level * scale + mean[i],
                        2e-3 * std::abs(level * scale) + 1e-5);
          }
          QuantizeVector(&values[token * stride], d, ValueBits(rung), codes.data(), &scale);
          for (int i = 0; i < d; ++i) {
            ASSERT_EQ(CodeAt(page.data(), rung, d, token, i, true), codes[i]);
            const double level = codes[i] - ((1 << ValueBits(rung)) - 1) / 2.0;
            ASSERT_NEAR(v[token * d + i], level * scale, 2e-3 * std::abs(level * scale) + 1e-5);
          }
        }
        for (int i = 0; i < d; ++i) EXPECT_EQ(CodeAt(page.data(), rung, d, 15, i, true), 0);
      }
    }
  });
}

// The nearest number that binary16 has, ties to even.
float RoundToHalf(float x) {
  int exponent;
  std::frexp(x, &exponent);
  const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
  return std::nearbyint(x / unit) * unit;
}

TEST(WriteTokensTest, Fp16ReadsBackRoundedAndClamped) {
  ForEachSimdTarget([] {
    constexpr int kDim = 48;
    std::mt19937 rng(1);
    std::vector<float> keys = Gaussian(3 * kDim, rng), values = Gaussian(3 * kDim, rng);
    keys[0] = 1e9f;
    values[1] = -1e9f;
    std::vector<std::byte> page(PageBytes(Rung::kFp16, kDim));
    WriteTokens(page.data(), Rung::kFp16, kDim, 0, 3,
                {.keys = keys.data(), .values = values.data(), .stride = kDim}, nullptr);
    std::vector<float> k(3 * kDim), v(3 * kDim);
    ReadTokens(page.data(), Rung::kFp16, kDim, 3, nullptr, k.data(), v.data());
    EXPECT_EQ(k[0], 65504.0f);
    EXPECT_EQ(v[1], -65504.0f);
    for (int i = 2; i < 3 * kDim; ++i) {
      EXPECT_EQ(k[i], RoundToHalf(keys[i]));
      EXPECT_EQ(v[i], RoundToHalf(values[i]));
    }
  });
}

// Lowering an 8-bit page to 4 bits costs little more than quantizing the exact values.
TEST(WriteTokensTest, RequantizingFromEightBitsAddsLittle) {
  constexpr int kDim = 64;
  std::mt19937 rng(2);
  double direct = 0, twice = 0;
  for (int n = 0; n < 100; ++n) {
    const std::vector<float> keys = Gaussian(16 * kDim, rng), values = Gaussian(16 * kDim, rng);
    const auto encode = [&](Rung rung, const float* k, const float* v, std::vector<float>& out_k) {
      std::vector<std::byte> page(PageBytes(rung, kDim));
      std::vector<float> out_v(16 * kDim);
      out_k.resize(16 * kDim);
      WriteTokens(page.data(), rung, kDim, 0, 16, {.keys = k, .values = v, .stride = kDim},
                  nullptr);
      ReadTokens(page.data(), rung, kDim, 16, nullptr, out_k.data(), out_v.data());
      return out_v;
    };
    std::vector<float> k4, k8, k84;
    encode(Rung::kK4V4, keys.data(), values.data(), k4);
    const std::vector<float> v8 = encode(Rung::kK8V8, keys.data(), values.data(), k8);
    encode(Rung::kK4V4, k8.data(), v8.data(), k84);
    for (int i = 0; i < 16 * kDim; ++i) {
      direct += (k4[i] - keys[i]) * (k4[i] - keys[i]);
      twice += (k84[i] - keys[i]) * (k84[i] - keys[i]);
    }
  }
  EXPECT_LT(twice, 1.05 * direct);
}

}  // namespace
}  // namespace whit
