#include "runtime/ops/activations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/ops/half.h"
#include "tests/unit/support/simd_targets.h"

namespace whit {
namespace {

TEST(ActivationsTest, CodesAreTheNearestIntegersOnEveryTarget) {
  ForEachSimdTarget([] {
    std::vector<float> x(70);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 3.0f;
    Activations a(3, 70);
    a.Reset({ActivationFormat::kInt8, ActivationFormat::kInt8, ActivationFormat::kInt16}, 70);
    a.SetRow(0, x.data());
    a.SetRow(1, std::vector<float>(70, 0.0f).data());
    a.SetRow(2, x.data());
    for (size_t c = 0; c < 70; ++c) {
      const float* scales = a.scales(c / 32);
      const int8_t* codes = a.codes(c / 32) + c % 32;
      EXPECT_NEAR(scales[0] * codes[0], x[c], 0.5001f * scales[0]) << c;
      EXPECT_EQ(codes[32], 0);
      const int wide = 128 * codes[64] + a.low_codes(c / 32)[64 + c % 32];
      EXPECT_NEAR(scales[2] * wide, x[c], 0.5001f * scales[2]) << c;
      EXPECT_NEAR(scales[2], scales[0] / 128, 1e-6f * scales[0]);
    }
    EXPECT_EQ(a.scales(0)[1], 0.0f);
    float sum = 0;
    for (size_t c = 0; c < 32; ++c) sum += a.scales(2)[0] * a.codes(2)[c];  // 6 real columns
    EXPECT_NEAR(a.sums(2)[0], sum, 1e-4f);
  });
}

TEST(ActivationsTest, BFloat16IsTheNearestOnEveryTarget) {
  if (PromptActivations() != ActivationFormat::kBFloat16) {
    GTEST_SKIP() << "this CPU has no tiles of bfloat16 (AMX)";
  }
  ForEachSimdTarget([] {
    std::vector<float> x(70);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 3.0f;
    Activations a(2, 70);
    a.Reset({ActivationFormat::kInt8, ActivationFormat::kBFloat16}, 70);
    a.SetRow(1, x.data());
    for (size_t c = 0; c < 70; ++c) {
      EXPECT_EQ(a.bfloat16(1, c), FloatToBFloat16(x[c]));
      EXPECT_NEAR(BFloat16ToFloat(a.bfloat16(1, c)), x[c], std::abs(x[c]) / 256) << c;
    }
    for (size_t c = 70; c < 96; ++c) EXPECT_EQ(a.bfloat16(1, c), 0);
  });
}

}  // namespace
}  // namespace whit
