#include "controller/rule_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace whit {
namespace {

TEST(RulePolicyTest, EntropyOrAttentionRaisesATokensRung) {
  const RulePolicy policy(
      {.entropy_low = 1, .entropy_high = 3, .attention_low = 1, .attention_high = 4});
  // Positions 100 to 105 of 200 tokens; queries since: 100 to 95.
  std::vector<TokenFeatures> features(6);
  const float entropies[] = {0.5f, 2, 3, 0.5f, 0.5f, 3};
  const float multiples[] = {0.5f, 0.5f, 0.5f, 1, 4, 5};
  LeavingTokens tokens = {.first_position = 100, .count = 6, .context = 200, .query_heads = 3};
  std::vector<float> sum(6);
  for (int i = 0; i < 6; ++i) {
    features[i].entropy = entropies[i];
    // An even share of a query's attention, which three heads pay, over the queries since.
    const float share = 2.0f * 3 / static_cast<float>(101 + i + 200);
    sum[i] = 1.001f * multiples[i] * share * static_cast<float>(100 - i);
  }
  tokens.received.sum = sum.data();
  tokens.features = features;
  std::vector<Rung> rungs(6);
  policy.Decide(tokens, absl::MakeSpan(rungs));
  EXPECT_THAT(rungs, testing::ElementsAre(Rung::kK2V2, Rung::kK4V4, Rung::kK8V8, Rung::kK4V4,
                                          Rung::kK8V8, Rung::kK8V8));
  EXPECT_TRUE(policy.needs().features);
}

}  // namespace
}  // namespace whit
