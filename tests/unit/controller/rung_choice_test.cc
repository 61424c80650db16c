#include "controller/rung_choice.h"

#include <gtest/gtest.h>

#include <random>

namespace whit {
namespace {

constexpr RungErrors kErrors = {.key = {0.2f, 0.01f, 1e-4f}, .value = {0.3f, 0.01f, 1e-4f}};

TEST(RungChoiceTest, CountsCodesAndScales) {
  EXPECT_EQ(PackedBits(Rung::kK2V2, 64), 2.25);
  EXPECT_EQ(PackedBits(Rung::kK4V2, 64), 3.25);
  EXPECT_EQ(PackedBits(Rung::kK8V8, 128), 8.125);
  EXPECT_EQ(PackedBits(Rung::kFp16, 64), 16);
  EXPECT_EQ(TokenBits(Rung::kK4V4, 64), 68 * 8);
}

TEST(RungChoiceTest, NothingCostsLessThanTheCheapestRung) {
  std::mt19937 rng(1);
  std::normal_distribution<double> normal;
  std::array<int, kNumRungs> chosen{};
  for (int i = 0; i < 2000; ++i) {
    const double key = std::exp(3 * normal(rng)), value = std::exp(3 * normal(rng));
    const double price = std::exp(2 * normal(rng) - 5);
    const Rung best = CheapestRung(key, value, kErrors, price, 64);
    ++chosen[static_cast<size_t>(best)];
    const double cost = Loss(best, key, value, kErrors) + price * TokenBits(best, 64);
    for (const Rung rung : kQuantizedRungs) {
      EXPECT_LE(cost, Loss(rung, key, value, kErrors) + price * TokenBits(rung, 64));
    }
  }
  for (const Rung rung : kQuantizedRungs) EXPECT_GT(chosen[static_cast<size_t>(rung)], 0);
}

TEST(RungChoiceTest, FreeBitsAndNoLossAreTheExtremes) {
  EXPECT_EQ(CheapestRung(1, 1, kErrors, 0, 64), Rung::kK8V8);
  EXPECT_EQ(CheapestRung(0, 0, kErrors, 1, 64), Rung::kK2V2);
  EXPECT_EQ(CheapestRung(0, 0, kErrors, 0, 64), Rung::kK2V2);
}

}  // namespace
}  // namespace whit
