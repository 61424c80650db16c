#include "server/cli/json_output.h"

#include <cmath>
#include <string>

#include "gtest/gtest.h"

namespace whit {
namespace {

TEST(ToJsonTest, KeepsFieldNamesAndNumbers) {
  v1::KvCacheUsage usage;
  usage.set_true_bytes(uint64_t{1} << 60);
  usage.set_mean_bits(4.25);
  usage.set_policy("fp16");
  v1::RungUsage& rung = *usage.add_rungs();
  rung.set_rung("FP16");
  rung.set_tokens(0.5);
  EXPECT_EQ(ToJson(usage).dump(),
            R"({"true_bytes":1152921504606846976,"fp16_equivalent_bytes":0,"mean_bits":4.25,)"
            R"("rungs":[{"rung":"FP16","tokens":0.5,"bytes":0}],"policy":"fp16","tokens":[]})");
}

TEST(ToJsonTest, LeavesOutMessagesAndOptionalFieldsThatAreNotSet) {
  v1::SamplingParameters sampling;
  sampling.set_temperature(0.1f);
  EXPECT_EQ(ToJson(sampling).dump(), R"({"temperature":0.1})");
  EXPECT_EQ(ToJson(v1::GenerateStreamRequest()).dump(), R"({"request_id":""})");
}

TEST(ToJsonTest, FloatsAreShortAndNonNumbersNull) {
  v1::TokenLogprob logprob;
  logprob.set_token_id(3);
  logprob.set_token("\xe2\x82");
  logprob.set_logprob(-1.7f);
  EXPECT_EQ(ToJson(logprob).dump(), R"({"token_id":3,"token":"4oI=","logprob":-1.7})");
  logprob.set_logprob(-INFINITY);
  EXPECT_EQ(ToJson(logprob)["logprob"].dump(), "null");
}

TEST(StreamPieceToJsonTest, OnlyTheLastPieceHasAnEnd) {
  v1::GenerateStreamResponse piece;
  piece.add_token_ids(5);
  piece.set_text("hi");
  EXPECT_EQ(StreamPieceToJson(piece).dump(), R"({"token_ids":[5],"text":"hi"})");
  piece.set_finish_reason(v1::FINISH_REASON_STOP);
  piece.mutable_usage()->set_prompt_tokens(3);
  piece.set_request_id("x");
  EXPECT_EQ(StreamPieceToJson(piece).dump(),
            R"({"token_ids":[5],"text":"hi","finish_reason":"FINISH_REASON_STOP",)"
            R"("usage":{"prompt_tokens":3,"cached_tokens":0,"completion_tokens":0},)"
            R"("request_id":"x"})");
}

}  // namespace
}  // namespace whit
