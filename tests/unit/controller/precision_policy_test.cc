#include "controller/precision_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace whit {
namespace {

TEST(PrecisionPolicySpecTest, NamesRoundTrip) {
  for (const char* name : {"fp16", "static:K2V2", "static:K8V8", "random:K2V2=1,K4V4=3"}) {
    const auto spec = ParsePrecisionPolicy(name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->ToString(), name);
    EXPECT_EQ(ParsePrecisionPolicy(spec->ToString()).value(), *spec);
  }
  EXPECT_EQ(ParsePrecisionPolicy("static:FP16")->ToString(), "fp16");
}

TEST(PrecisionPolicySpecTest, ErrorsNameTheBadPart) {
  const auto error = [](const char* name) {
    return ParsePrecisionPolicy(name).status().ToString();
  };
  using testing::HasSubstr;
  EXPECT_THAT(error("fp8"), HasSubstr("'fp8' is no KV policy"));
  EXPECT_THAT(error("static:K3V3"), HasSubstr("'K3V3' is no rung"));
  EXPECT_THAT(error("random:K4V4"), HasSubstr("'K4V4' must be RUNG=WEIGHT"));
  EXPECT_THAT(error("random:K4V4=-1"), HasSubstr("K4V4=-1"));
  EXPECT_THAT(error("random:K4V4=nan"), HasSubstr("K4V4=nan"));
  EXPECT_THAT(error("random:K4V4=0"), HasSubstr("all weights are 0"));
  EXPECT_THAT(error("adaptive"), HasSubstr("UNIMPLEMENTED"));
}

TEST(PrecisionPolicyTest, StaticGivesEveryTokenItsRung) {
  const auto policy = MakePrecisionPolicy(*ParsePrecisionPolicy("static:K4V2"));
  std::vector<Rung> rungs(16, Rung::kFp16);
  policy->Decide({.layer = 1, .kv_head = 2, .first_position = 32}, absl::MakeSpan(rungs));
  for (Rung rung : rungs) EXPECT_EQ(rung, Rung::kK4V2);
  MakePrecisionPolicy(*ParsePrecisionPolicy("fp16"))->Decide({}, absl::MakeSpan(rungs));
  for (Rung rung : rungs) EXPECT_EQ(rung, Rung::kFp16);
}

TEST(PrecisionPolicyTest, RandomKeepsItsProportionsAndItsChoices) {
  const auto policy = MakePrecisionPolicy(*ParsePrecisionPolicy("random:K2V2=1,K8V8=3"));
  std::array<int, kNumRungs> counts{};
  for (int layer = 0; layer < 20; ++layer) {
    for (int head = 0; head < 4; ++head) {
      for (int position = 0; position < 1600; position += 16) {
        std::vector<Rung> first(16), again(16);
        const PrecisionPolicy::Tokens tokens = {layer, head, position};
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

}  // namespace
}  // namespace whit
