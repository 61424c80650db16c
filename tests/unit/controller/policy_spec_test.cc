#include "controller/policy_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace whit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParsePrecisionPolicyTest, NamesRoundTrip) {
  for (const char* name :
       {"fp16", "static:K2V2", "static:K8V8", "random:K2V2=1,K4V4=3", "static-allocated:3",
        "static-allocated:3.125", "rule", "rule:entropy=0.5:2,attention=1:8", "learned", "adaptive",
        "adaptive:3.5"}) {
    const auto spec = ParsePrecisionPolicy(name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->ToString(), name);
    EXPECT_EQ(ParsePrecisionPolicy(spec->ToString()).value(), *spec);
  }
  EXPECT_EQ(ParsePrecisionPolicy("static:FP16")->ToString(), "fp16");
  EXPECT_EQ(ParsePrecisionPolicy("adaptive:3.0")->packed_bits, 3);
  // What a rule does not name keeps its default.
  const PrecisionPolicySpec rule = *ParsePrecisionPolicy("rule:attention=2:3");
  EXPECT_EQ(rule.rule.attention_low, 2);
  EXPECT_EQ(rule.rule.attention_high, 3);
  EXPECT_EQ(rule.rule.entropy_high, RuleThresholds().entropy_high);
}

TEST(ParsePrecisionPolicyTest, ErrorsNameTheBadPart) {
  const auto error = [](const char* name) {
    return ParsePrecisionPolicy(name).status().ToString();
  };
  EXPECT_THAT(error("fp8"), HasSubstr("'fp8' is no KV policy"));
  EXPECT_THAT(error(""), HasSubstr("'' is no KV policy"));
  EXPECT_THAT(error("static"), HasSubstr("'static' is no KV policy"));
  EXPECT_THAT(error("learned:3"), HasSubstr("'learned:3' is no KV policy"));
  EXPECT_THAT(error("static:K3V3"), HasSubstr("'K3V3' is no rung"));
  EXPECT_THAT(error("random:K4V4"), HasSubstr("'K4V4' must be RUNG=WEIGHT"));
  EXPECT_THAT(error("random:K4V4=-1"), HasSubstr("K4V4=-1"));
  EXPECT_THAT(error("random:K4V4=nan"), HasSubstr("K4V4=nan"));
  EXPECT_THAT(error("random:K4V4=0"), HasSubstr("all weights are 0"));
  EXPECT_THAT(error("adaptive:2"), HasSubstr("'2' is no number of bits in [2.25, 8.25]"));
  EXPECT_THAT(error("adaptive:nan"), HasSubstr("'nan' is no number"));
  EXPECT_THAT(error("adaptive:"), HasSubstr("'' is no number"));
  EXPECT_THAT(error("static-allocated:9"), HasSubstr("static-allocated: '9'"));
  EXPECT_THAT(error("rule:entropy=3"), HasSubstr("'entropy=3' must be"));
  EXPECT_THAT(error("rule:attention=3:2"), HasSubstr("'attention=3:2' must be"));
  EXPECT_THAT(error("rule:attention=nan:2"), HasSubstr("'attention=nan:2' must be"));
  EXPECT_THAT(error("rule:length=1:2"), HasSubstr("'length=1:2' must be"));
}

TEST(PossibleRungsTest, AreLowestFirst) {
  const auto rungs = [](const char* name) { return PossibleRungs(*ParsePrecisionPolicy(name)); };
  EXPECT_THAT(rungs("fp16"), ElementsAre(Rung::kFp16));
  EXPECT_THAT(rungs("static:K4V2"), ElementsAre(Rung::kK4V2));
  EXPECT_THAT(rungs("random:K8V8=1,K2V2=1"), ElementsAre(Rung::kK2V2, Rung::kK8V8));
  EXPECT_EQ(rungs("learned").back(), Rung::kFp16);
  EXPECT_EQ(rungs("adaptive:3").back(), Rung::kK8V8);
  for (const char* name : {"rule", "learned", "adaptive", "static-allocated:3"}) {
    const std::vector<Rung> all = rungs(name);
    EXPECT_TRUE(std::is_sorted(all.begin(), all.end())) << name;
  }
}

}  // namespace
}  // namespace whit
