#include "runtime/engine/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "runtime/model/model_config.h"

namespace whit {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

ModelConfig Model() {
  ModelConfig model;
  model.vocab_size = 1000;
  model.context_length = 100;
  return model;
}

Request Valid() {
  Request request;
  request.prompt = {1, 2, 3};
  request.max_new_tokens = 50;
  return request;
}

TEST(ValidateRequestTest, TheEdgesOfEachRangeAreWithinIt) {
  EXPECT_TRUE(ValidateRequest(Valid(), Model(), Rung::kK2V2).ok());
  Request low = Valid();
  low.max_new_tokens = 1;
  low.prompt = {0};
  low.sampling = {.temperature = 0,
                  .top_k = 0,
                  .top_p = 1e-30f,
                  .min_p = 0,
                  .repetition_penalty = 1e-30f,
                  .presence_penalty = -100,
                  .frequency_penalty = -100};
  low.logprobs = 0;
  EXPECT_TRUE(ValidateRequest(low, Model(), Rung::kK2V2).ok())
      << ValidateRequest(low, Model(), Rung::kK2V2);
  Request high = Valid();
  high.max_new_tokens = 97;
  high.prompt = {999, 999, 999};
  high.sampling = {.temperature = 100,
                   .top_k = std::numeric_limits<int>::max(),
                   .top_p = 1,
                   .min_p = 1,
                   .repetition_penalty = 10,
                   .presence_penalty = 100,
                   .frequency_penalty = 100};
  high.logprobs = 20;
  high.stop.assign(16, std::string(1024, 'x'));
  high.stop_token_ids.assign(64, 999);
  high.id = std::string(128, '~');
  EXPECT_TRUE(ValidateRequest(high, Model(), Rung::kK2V2).ok())
      << ValidateRequest(high, Model(), Rung::kK2V2);
  Request score = Valid();
  score.max_new_tokens = 0;
  score.prompt.assign(100, 5);
  score.score_tokens = 99;
  EXPECT_TRUE(ValidateRequest(score, Model(), Rung::kK2V2).ok())
      << ValidateRequest(score, Model(), Rung::kK2V2);
}

struct BadCase {
  std::function<void(Request&)> spoil;
  std::string message;
};

TEST(ValidateRequestTest, EachFaultIsNamedWithItsValueAndBound) {
  const BadCase cases[] = {
      {[](Request& r) { r.sampling.temperature = kNan; },
       "sampling.temperature is nan; it must be between 0 and 100"},
      {[](Request& r) { r.sampling.temperature = -0.5f; },
       "sampling.temperature is -0.5; it must be between 0 and 100"},
      {[](Request& r) { r.sampling.temperature = kInfinity; },
       "sampling.temperature is inf; it must be between 0 and 100"},
      {[](Request& r) { r.sampling.top_k = -1; },
       "sampling.top_k is -1; it must be between 0 and 2147483647"},
      {[](Request& r) { r.sampling.top_p = 0; },
       "sampling.top_p is 0; it must be above 0 and at most 1"},
      {[](Request& r) { r.sampling.top_p = kNan; },
       "sampling.top_p is nan; it must be above 0 and at most 1"},
      {[](Request& r) { r.sampling.top_p = 1.5f; },
       "sampling.top_p is 1.5; it must be above 0 and at most 1"},
      {[](Request& r) { r.sampling.min_p = 2; }, "sampling.min_p is 2; it must be between 0 and 1"},
      {[](Request& r) { r.sampling.min_p = kNan; },
       "sampling.min_p is nan; it must be between 0 and 1"},
      {[](Request& r) { r.sampling.repetition_penalty = 0; },
       "sampling.repetition_penalty is 0; it must be above 0 and at most 10"},
      {[](Request& r) { r.sampling.presence_penalty = 101; },
       "sampling.presence_penalty is 101; it must be between -100 and 100"},
      {[](Request& r) { r.sampling.frequency_penalty = -kInfinity; },
       "sampling.frequency_penalty is -inf; it must be between -100 and 100"},
      {[](Request& r) { r.prompt.clear(); }, "prompt is empty; it must have at least 1 token"},
      {[](Request& r) { r.prompt.assign(100, 1); },
       "prompt has 100 tokens; it must have fewer than the model's context, 100"},
      {[](Request& r) { r.prompt[1] = 1000; },
       "prompt.token_ids[1] is 1000; it must be below the vocabulary size, 1000"},
      {[](Request& r) { r.prompt[2] = -1; },
       "prompt.token_ids[2] is 4294967295; it must be below the vocabulary size, 1000"},
      {[](Request& r) { r.max_new_tokens = 0; },
       "stopping.max_new_tokens is 0; it must be between 1 and 97, what the prompt of 3 tokens "
       "leaves of the model's context of 100"},
      {[](Request& r) { r.max_new_tokens = int64_t{1} << 31; },
       "stopping.max_new_tokens is 2147483648; it must be between 1 and 97, what the prompt of 3 "
       "tokens leaves of the model's context of 100"},
      {[](Request& r) { r.stop.assign(17, "x"); },
       "stopping.stop has 17 strings; it may have at most 16"},
      {[](Request& r) {
         r.stop = {"x", ""};
       },
       "stopping.stop[1] is empty; it must have at least 1 byte"},
      {[](Request& r) { r.stop = {std::string(10 << 20, 'x')}; },
       "stopping.stop[0] has 10485760 bytes; it may have at most 1024"},
      {[](Request& r) { r.stop_token_ids.assign(65, 1); },
       "stopping.stop_token_ids has 65 ids; it may have at most 64"},
      {[](Request& r) {
         r.stop_token_ids = {5, 70000};
       },
       "stopping.stop_token_ids[1] is 70000; it must be below the vocabulary size, 1000"},
      {[](Request& r) { r.kv_target_bits = 3; },
       "kv_cache.target_bits is 3, but policy fp16 takes none; adaptive does"},
      {[](Request& r) {
         r.kv_policy = *ParsePrecisionPolicy("adaptive:3");
         r.kv_target_bits = 3;
       },
       "kv_cache.target_bits is 3, but policy adaptive:3 takes none; adaptive does"},
      {[](Request& r) {
         r.kv_policy = *ParsePrecisionPolicy("adaptive");
         r.kv_target_bits = 17;
       },
       "kv_cache.target_bits is 17; it must be between 2.25 and 16"},
      {[](Request& r) { r.logprobs = 21; }, "logprobs is 21; it must be between 0 and 20"},
      {[](Request& r) { r.score_tokens = 3; },
       "score_tokens is 3; it must be above 0 and below the number of tokens, 3"},
      {[](Request& r) { r.score_tokens = -2; },
       "score_tokens is -2; it must be above 0 and below the number of tokens, 3"},
      {[](Request& r) {
         r.prompt.assign(101, 1);
         r.score_tokens = 1;
       },
       "prompt has 101 tokens with the continuation; it may have at most 100"},
      {[](Request& r) { r.id = std::string(129, 'a'); },
       "request_id has 129 bytes; it may have at most 128"},
      {[](Request& r) { r.id = "line\nbreak"; },
       "request_id has a byte that is not printable ASCII"},
  };
  for (const BadCase& bad : cases) {
    Request request = Valid();
    bad.spoil(request);
    const absl::Status status = ValidateRequest(request, Model(), Rung::kK2V2);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_EQ(std::string(status.message()), bad.message);
  }
}

TEST(ValidateRequestTest, AFloorIsForPoliciesThatGiveSeveralRungsAndNotBelowTheOperators) {
  Request request = Valid();
  request.kv_floor = Rung::kK4V4;
  for (const char* policy : {"fp16", "static:K4V4"}) {
    request.kv_policy = *ParsePrecisionPolicy(policy);
    const absl::Status status = ValidateRequest(request, Model(), Rung::kK2V2);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(status.message()),
        testing::HasSubstr(std::string("kv_cache.floor_rung is K4V4, but policy ") + policy));
  }
  request.kv_policy = *ParsePrecisionPolicy("adaptive");
  for (Rung lowest : {Rung::kK2V2, Rung::kK4V4}) {
    EXPECT_TRUE(ValidateRequest(request, Model(), lowest).ok());
  }
  const absl::Status status = ValidateRequest(request, Model(), Rung::kK8V4);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(status.message()),
            "kv_cache.floor_rung is K4V4; this server lets it be no lower than K8V4");
}

}  // namespace
}  // namespace whit
