#include "controller/calibrate/token_features.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace whit {
namespace {

TEST(TokenFeatureReaderTest, FeaturesAreThoseOfThePaper) {
  ThreadPool pool(2);
  TokenFeatureReader reader({7, 8, 7, 7});
  // One certain token of four; then all alike, and large; in two passes.
  reader.Add({100, 0, 0, 0, 90, 90, 90, 90}, 4, pool);
  reader.Add({std::log(3.0f), 0, -100, -100, 0, 0, 0, 0}, 4, pool);
  const std::vector<TokenFeatures> features = reader.Features({0.1f, 0.2f, 0.3f, 0.4f});
  ASSERT_EQ(features.size(), 4);
  EXPECT_NEAR(features[0].entropy, 0, 1e-6);
  EXPECT_NEAR(features[0].confidence, 1, 1e-6);
  EXPECT_NEAR(features[1].entropy, std::log(4), 1e-5);
  EXPECT_NEAR(features[1].confidence, 0.25, 1e-6);
  EXPECT_NEAR(features[2].entropy, -0.75 * std::log(0.75) - 0.25 * std::log(0.25), 1e-5);
  EXPECT_NEAR(features[2].confidence, 0.75, 1e-6);
  // Counts are those before the token: seen, tokens, and distinct tokens.
  EXPECT_NEAR(features[0].rarity, -std::log(1.0 / 1), 1e-6);
  EXPECT_NEAR(features[1].rarity, -std::log(1.0 / (1 + 1 + 1)), 1e-6);
  EXPECT_NEAR(features[2].rarity, -std::log(2.0 / (2 + 2 + 1)), 1e-6);
  EXPECT_NEAR(features[3].rarity, -std::log(3.0 / (3 + 2 + 1)), 1e-6);
  EXPECT_EQ(features[3].attention_variance, 0.4f);
}

}  // namespace
}  // namespace whit
