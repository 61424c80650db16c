#include "tests/eval/arms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "controller/generic_importance.h"

namespace whit::eval {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Names(const std::vector<Arm>& arms) {
  std::vector<std::string> names;
  for (const Arm& arm : arms) names.push_back(arm.name);
  return names;
}

TEST(ParseArmsTest, PutsTheReferenceFirstAndKeepsOneOfEach) {
  EXPECT_THAT(Names(*ParseArms("static:K4V4,fp16,static:K2V2,static:K4V4", {})),
              ElementsAre("fp16", "static:K4V4", "static:K2V2"));
  EXPECT_THAT(Names(*ParseArms("", {})), ElementsAre("fp16"));
  const Arm reference = ParseArms("", {})->front();
  EXPECT_TRUE(IsReference(reference));
  EXPECT_EQ(reference.ring.rung, Rung::kFp16);
  EXPECT_EQ(reference.activations, ActivationFormat::kInt16);
}

TEST(ParseArmsTest, KeepsAMixTogether) {
  EXPECT_THAT(Names(*ParseArms("random:K2V2=1,K4V4=3,static:K8V8,random:K4V2=1@64", {})),
              ElementsAre("fp16", "random:K2V2=1,K4V4=3", "static:K8V8", "random:K4V2=1@64"));
}

TEST(ParseArmsTest, TakesRingsForOneArmAndForAll) {
  const std::vector<Arm> arms = *ParseArms("static:K4V4,static:K4V4@64:FP16:K8V8,static:K2V2@0",
                                           {.tokens = 128, .rung = Rung::kK4V4});
  EXPECT_EQ(arms[0].ring.rung, Rung::kFp16);
  EXPECT_EQ(arms[1].ring.tokens, 128);
  EXPECT_EQ(arms[1].ring.rung, Rung::kK4V4);
  EXPECT_EQ(arms[2].ring.tokens, 64);
  EXPECT_EQ(arms[2].ring.rung, Rung::kFp16);
  EXPECT_EQ(arms[2].ring.sink_rung, Rung::kK8V8);
  EXPECT_EQ(arms[3].ring.tokens, 0);
  EXPECT_EQ(arms[3].ring.rung, Rung::kK4V4);
}

TEST(ParseArmsTest, KnowsEveryPolicyAndTheNaiveBaseline) {
  const PolicyFile file = {.model = {.num_layers = 1, .num_kv_heads = 1, .head_dim = 64},
                           .sensitivities = {1, 1}};
  EXPECT_THAT(Names(*ParseArms("adaptive:3.0,rule:entropy=1:2,attention=2:3,static-allocated:3.5,"
                               "naive:K4V4",
                               {}, &file)),
              ElementsAre("fp16", "adaptive:3", "rule:entropy=1:2,attention=2:3",
                          "static-allocated:3.5", "naive:K4V4"));
  const std::vector<Arm> arms = *ParseArms("naive:K4V2", {});
  EXPECT_EQ(arms[1].naive_rung, Rung::kK4V2);
  EXPECT_FALSE(IsReference(arms[1]));
}

TEST(ParseArmsTest, GivesTheOracleTheRingOfAdaptiveAndTheErrorsOfTheFile) {
  PolicyFile file;
  file.importance.emplace();
  file.importance->key_error = {0.5f, 0.25f, 0.125f};
  const std::vector<Arm> arms = *ParseArms("adaptive:3,oracle:3,oracle@64", {});
  EXPECT_THAT(Names(arms), ElementsAre("fp16", "adaptive:3", "oracle:3", "oracle@64"));
  EXPECT_FALSE(arms[1].oracle.has_value());
  EXPECT_EQ(arms[2].ring, arms[1].ring);
  EXPECT_EQ(arms[2].oracle->packed_bits, 3);
  EXPECT_EQ(arms[2].oracle->errors.key, kGenericErrors.key);
  EXPECT_EQ(arms[3].oracle->packed_bits, kDefaultPackedBits);
  EXPECT_EQ(arms[3].ring.tokens, 64);
  EXPECT_EQ(ParseArms("oracle:3", {}, &file)->at(1).oracle->errors.key, file.importance->key_error);
}

TEST(ParseArmsTest, SaysWhatIsWrong) {
  const auto error = [](const char* list) {
    return std::string(ParseArms(list, {}).status().message());
  };
  EXPECT_THAT(error("static:K4V4,dynamic"), HasSubstr("arm 'dynamic'"));
  EXPECT_THAT(error("static:K3V3"), HasSubstr("the rungs are"));
  EXPECT_THAT(error("static:K4V4@"), HasSubstr("'@' is no ring"));
  EXPECT_THAT(error("static:K4V4@x"), HasSubstr("'@x' is no ring"));
  EXPECT_THAT(error("static:K4V4@16:K8V8:FP16:FP16"), HasSubstr("is no ring"));
  EXPECT_THAT(error("static:K4V4@16:K9V9"), HasSubstr("K9V9"));
  EXPECT_THAT(error("static:K4V4@20"), HasSubstr("20 tokens; it must be a multiple of 16"));
  EXPECT_THAT(error("static:K4V4@-16"), HasSubstr("-16 tokens"));
  EXPECT_THAT(error("fp16@32"), HasSubstr("takes no ring"));
  EXPECT_THAT(error("learned"), HasSubstr("arm 'learned': KV policy learned needs a policy file"));
  EXPECT_THAT(error("naive:K3V3"), HasSubstr("'K3V3' is no rung"));
  EXPECT_THAT(error("oracle:9"), HasSubstr("arm 'oracle:9'"));
  EXPECT_THAT(error("oraclex:3"), HasSubstr("'oraclex:3' is no KV policy"));
  EXPECT_THAT(error("naive:FP16"), HasSubstr("FP16 is not quantized"));
}

TEST(LabelOfTest, NamesTheFamilyAndTheBudget) {
  const std::vector<Arm> arms = *ParseArms("static:K4V4@64", {});
  EXPECT_EQ(LabelOf(arms[1]).family, "static@64");
  EXPECT_EQ(LabelOf(arms[1]).label, "K4V4");
  EXPECT_EQ(LabelOf(arms[0]).label, "fp16");
}

}  // namespace
}  // namespace whit::eval
