#include "controller/precision_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

namespace whit {
namespace {

using testing::HasSubstr;

std::unique_ptr<const PrecisionPolicy> Make(const char* name) {
  return MakePrecisionPolicy(*ParsePrecisionPolicy(name), nullptr).value();
}

TEST(PrecisionPolicyTest, StaticGivesEveryTokenItsRung) {
  const auto policy = Make("static:K4V2");
  std::vector<Rung> rungs(16, Rung::kFp16);
  policy->Decide({.layer = 1, .kv_head = 2, .first_position = 32, .count = 16},
                 absl::MakeSpan(rungs));
  for (Rung rung : rungs) EXPECT_EQ(rung, Rung::kK4V2);
  Make("fp16")->Decide({.count = 16}, absl::MakeSpan(rungs));
  for (Rung rung : rungs) EXPECT_EQ(rung, Rung::kFp16);
}

TEST(PrecisionPolicyTest, RandomKeepsItsProportionsAndItsChoices) {
  const auto policy = Make("random:K2V2=1,K8V8=3");
  std::array<int, kNumRungs> counts{};
  for (int layer = 0; layer < 20; ++layer) {
    for (int head = 0; head < 4; ++head) {
      for (int position = 0; position < 1600; position += 16) {
        std::vector<Rung> first(16), again(16);
        const LeavingTokens tokens = {
            .layer = layer, .kv_head = head, .first_position = position, .count = 16};
        policy->Decide(tokens, absl::MakeSpan(first));
        policy->Decide(tokens, absl::MakeSpan(again));
        EXPECT_EQ(first, again);
        for (Rung rung : first) ++counts[static_cast<size_t>(rung)];
      }
    }
  }
  const int all = 20 * 4 * 1600;
  EXPECT_EQ(counts[static_cast<size_t>(Rung::kK2V2)] + counts[static_cast<size_t>(Rung::kK8V8)],
            all);
  EXPECT_NEAR(counts[static_cast<size_t>(Rung::kK2V2)], all / 4.0, 5 * std::sqrt(all * 3 / 16.0));
}

TEST(MakePrecisionPolicyTest, SaysWhichSectionIsMissingAndWhatMakesIt) {
  const PolicyFile means_only;
  for (const auto& [name, section] :
       {std::pair{"learned", "'learned'"}, std::pair{"static-allocated:3", "'sensitivities'"}}) {
    for (const PolicyFile* file : {static_cast<const PolicyFile*>(nullptr), &means_only}) {
      const absl::Status status = MakePrecisionPolicy(*ParsePrecisionPolicy(name), file).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << name;
      const std::string message(status.message());
      EXPECT_THAT(message, HasSubstr(name));
      EXPECT_THAT(message, HasSubstr(section));
      EXPECT_THAT(message, HasSubstr("whit-calibrate"));
    }
  }
}

TEST(MakePrecisionPolicyTest, AdaptiveAndRuleDoWithoutAFile) {
  for (const char* name : {"adaptive", "adaptive:3", "rule"}) {
    EXPECT_TRUE(Make(name)->needs().attention) << name;
  }
  EXPECT_FALSE(Make("static:K4V4")->needs().attention);
}

TEST(RingOfTest, AtFp16AllTokensAreAlike) {
  const RecentRing ring = {.rung = Rung::kK4V4, .tokens = 64, .sink_rung = Rung::kK8V8};
  EXPECT_EQ(RingOf(*ParsePrecisionPolicy("static:K2V2"), ring), ring);
  EXPECT_EQ(RingOf(*ParsePrecisionPolicy("static:K2V2")), kDefaultRing);
  EXPECT_EQ(RingOf(*ParsePrecisionPolicy("fp16"), ring), RecentRing());
}

TEST(CheckRingTokensTest, TakesWholePagesAndNamesTheBounds) {
  for (int tokens : {0, 16, 32, kMaxRingTokens}) EXPECT_TRUE(CheckRingTokens(tokens).ok());
  for (int tokens : {-16, 1, 20, kMaxRingTokens + 16}) {
    EXPECT_EQ(CheckRingTokens(tokens).message(),
              std::to_string(tokens) + " is no multiple of 16 in [0, 65536]");
  }
}

}  // namespace
}  // namespace whit
