#include "controller/price.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "controller/generic_importance.h"
#include "controller/rung_choice.h"

namespace whit {
namespace {

constexpr int kHeadDim = 64, kLists = 90;

// Tokens whose losses are spread as a model's are. `level` and `spread` are those of ln(loss).
class SyntheticTokens {
 public:
  explicit SyntheticTokens(uint32_t seed) : rng_(seed) {}

  // Mean packed bits of `count` tokens, each in kLists lists, at this price.
  double Decide(int count, double price, double level, double spread) {
    double bits = 0;
    for (int i = 0; i < count; ++i) {
      const double token = normal_(rng_);  // what its lists have in common
      for (int list = 0; list < kLists; ++list) {
        const double common = 0.5 * token + std::sqrt(0.75) * normal_(rng_);
        const double key = level + 1.25 + spread * common;
        const double value = level + spread * (0.9 * common + std::sqrt(0.19) * normal_(rng_));
        bits += PackedBits(
            CheapestRung(std::exp(key), std::exp(value), kGenericErrors, price, kHeadDim),
            kHeadDim);
      }
    }
    return bits / (count * kLists);
  }

 private:
  std::mt19937 rng_;
  std::normal_distribution<double> normal_;
};

// What these tokens get at a level of 0 and a spread of 2.2, to the twentieth part.
PriceCurve CurveOfSyntheticTokens() {
  std::vector<PolicyFile::PricePoint> points;
  for (const auto& [width, log_price] :
       std::initializer_list<std::pair<float, float>>{{7.37f, -7},
                                                      {6.52f, -5.5f},
                                                      {5.78f, -4.5f},
                                                      {5, -3.5f},
                                                      {4.27f, -2.5f},
                                                      {3.63f, -1.5f},
                                                      {3.09f, -0.5f},
                                                      {2.66f, 0.5f},
                                                      {2.35f, 1.5f},
                                                      {2.16f, 2.5f}}) {
    points.push_back(
        {.bits = width + 16.0f / kHeadDim, .price = std::exp(log_price) / (2.0f * kHeadDim)});
  }
  return PriceCurve(points, kHeadDim);
}

// A sequence under a controller that holds its packed bits.
struct Loop {
  Loop(double target, uint32_t seed)
      : target_bits(target), tokens(seed), controller(CurveOfSyntheticTokens(), target) {}

  // Decides `count` tokens, then lets the controller see what became of them.
  double Step(int count, double level, double spread, double pressure = 0) {
    const double decided = tokens.Decide(count, controller.price(), level, spread);
    sum += count * decided;
    held += count;
    controller.Update({.target_bits = target_bits,
                       .held_bits = sum / held,
                       .held_tokens = held,
                       .decided_bits = decided,
                       .decided_tokens = static_cast<double>(count),
                       .pressure = pressure});
    return decided;
  }
  double mean() const { return sum / held; }

  const double target_bits;
  SyntheticTokens tokens;
  PriceController controller;
  double sum = 0, held = 0;
};

TEST(PriceCurveTest, GoesThroughItsPointsAndBackAgain) {
  const std::vector<PolicyFile::PricePoint> points = {
      {.bits = 6, .price = 1e-4f}, {.bits = 4, .price = 1e-3f}, {.bits = 3, .price = 1e-2f}};
  const PriceCurve curve(points, kHeadDim);
  for (const PolicyFile::PricePoint& point : points) {
    EXPECT_NEAR(curve.LogPrice(point.bits), std::log(point.price), 1e-5);
  }
  for (double bits = 2; bits < 9; bits += 0.3) {
    EXPECT_NEAR(curve.Bits(curve.LogPrice(bits)), bits, 1e-9);
    EXPECT_GT(curve.LogPrice(bits), curve.LogPrice(bits + 0.1));
  }
  EXPECT_EQ(curve.min_bits(), 2.25);
  EXPECT_EQ(curve.max_bits(), 8.25);
}

TEST(PriceCurveTest, LeavesOutWhatIsNoCurve) {
  const PriceCurve generic({}, kHeadDim);
  // One point is no curve, a price of 0 no point, nor is one that goes the other way.
  const PriceCurve one(
      std::vector<PolicyFile::PricePoint>{{.bits = 8, .price = 0}, {.bits = 4, .price = 1e-3f}},
      kHeadDim);
  EXPECT_EQ(one.LogPrice(3), generic.LogPrice(3));
  const PriceCurve two(
      std::vector<PolicyFile::PricePoint>{
          {.bits = 6, .price = 1e-4f}, {.bits = 5, .price = 1e-5f}, {.bits = 4, .price = 1e-3f}},
      kHeadDim);
  EXPECT_NEAR(two.LogPrice(5), (std::log(1e-4) + std::log(1e-3)) / 2, 1e-5);
}

TEST(GenericPricesTest, AreACurveOverAllBitsThatCanBeReached) {
  for (const int head_dim : {16, 64, 128}) {
    const std::vector<PolicyFile::PricePoint> prices = GenericPrices(head_dim);
    const PriceCurve curve(prices, head_dim);
    // None was left out.
    for (const PolicyFile::PricePoint& point : prices) {
      EXPECT_NEAR(curve.LogPrice(point.bits), std::log(point.price), 1e-5);
    }
    EXPECT_NEAR(prices.front().bits, curve.max_bits(), 0.5);
    EXPECT_NEAR(prices.back().bits, curve.min_bits(), 0.1);
  }
}

TEST(PricePressureTest, RisesWithWhatIsUsedOnceThereIsLittleToSpare) {
  const auto pressure = [](size_t used, size_t reserved) {
    return PricePressure({.capacity_bytes = 1000, .used_bytes = used, .reserved_bytes = reserved});
  };
  EXPECT_EQ(pressure(0, 0), 0);
  EXPECT_EQ(pressure(0, 1000), 0);  // reserved for the worst case, and not used
  EXPECT_EQ(pressure(700, 700), 0);
  EXPECT_GT(pressure(700, 1000), 0);
  EXPECT_EQ(pressure(1000, 1000), kMaxPressure);
  EXPECT_EQ(PricePressure({}), 0);
  for (size_t used = 0; used < 1000; used += 50) {
    EXPECT_LE(pressure(used, 1000), pressure(used + 50, 1000));
    EXPECT_LE(pressure(used, used), pressure(used, 1000));
  }
}

// What the controller is for: losses whose level and spread drift as the text goes on, prompts in
// blocks and decoding page by page.
TEST(PriceControllerTest, HoldsTheMeanWithinThreePercentWhileTheTextDrifts) {
  for (const double target : {2.5, 3.0, 3.5, 4.25}) {
    for (uint32_t seed = 0; seed < 3; ++seed) {
      Loop loop(target, seed);
      for (int position = 0; position < 2048;) {
        const int count = position < 512 ? 128 : 16;
        const double drift = 1.5 * std::sin(position / 300.0 + seed);
        loop.Step(count, 1 + drift, 2.2 + 0.5 * std::sin(position / 170.0));
        position += count;
        if (position < 1024) continue;
        EXPECT_NEAR(loop.mean(), target, 0.03 * target) << position;
      }
    }
  }
}

// A model whose importance lies anywhere: the first block is wrong, the mean is not.
TEST(PriceControllerTest, FindsAPriceThatIsFarFromTheCurve) {
  for (const double level : {-12.0, 12.0}) {
    Loop loop(3, 1);
    for (int i = 0; i < 100; ++i) loop.Step(16, level, 2.2);
    EXPECT_NEAR(loop.mean(), 3, 0.09) << level;
    EXPECT_NEAR(loop.tokens.Decide(500, loop.controller.price(), level, 2.2), 3, 0.15) << level;
  }
}

TEST(PriceControllerTest, DoesNotOscillate) {
  Loop loop(3, 4);
  for (int i = 0; i < 60; ++i) loop.Step(16, 2, 2.2);
  std::vector<double> logs;
  for (int i = 0; i < 100; ++i) {
    loop.Step(16, 2, 2.2);
    logs.push_back(std::log(loop.controller.price()));
  }
  const auto [low, high] = std::minmax_element(logs.begin(), logs.end());
  EXPECT_LT(*high - *low, 0.5);  // less than a third of a bit
}

TEST(PriceControllerTest, YieldsUnderPressureAndComesBack) {
  Loop loop(4, 2);
  for (int i = 0; i < 60; ++i) loop.Step(16, 1, 2.2);
  const double calm = loop.controller.price();
  loop.Step(16, 1, 2.2, 2);
  EXPECT_GT(loop.controller.price(), 4 * calm);
  double bits = 0;
  for (int i = 0; i < 30; ++i) bits += loop.Step(16, 1, 2.2, 2) / 30;
  EXPECT_LT(bits, 3.2);  // the target does not win against pressure
  loop.Step(16, 1, 2.2);
  for (int i = 0; i < 300; ++i) loop.Step(16, 1, 2.2);
  EXPECT_NEAR(loop.mean(), 4, 0.12);
}

// True bits have a part that no price moves: the ring. Short sequences then get the lowest rung,
// and the price does not run away meanwhile.
TEST(PriceControllerTest, AnUnreachableTargetDoesNotWindUp) {
  PriceController controller(PriceCurve({}, kHeadDim), 3);
  SyntheticTokens tokens(1);
  for (int i = 0; i < 200; ++i) {
    const double decided = tokens.Decide(16, controller.price(), 1, 2.2);
    controller.Update({.target_bits = 3,
                       .held_bits = 8,
                       .held_tokens = 2000,
                       .decided_bits = decided,
                       .decided_tokens = 16});
  }
  const PriceCurve curve({}, kHeadDim);
  EXPECT_LT(std::log(controller.price()), curve.LogPrice(2.25) + 4);
  controller.Update({.target_bits = 3, .held_bits = 3, .held_tokens = 2000});
  EXPECT_NEAR(tokens.Decide(500, controller.price(), 1, 2.2), 3, 0.3);
}

}  // namespace
}  // namespace whit
