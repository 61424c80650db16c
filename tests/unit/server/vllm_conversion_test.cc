#include "server/vllm/vllm_conversion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace whit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

v1::GenerateStreamRequest Converted(vllm::GenerateRequest request) {
  const auto converted = ToGenerateStreamRequest(request);
  EXPECT_TRUE(converted.ok()) << converted.status();
  return converted.value_or(v1::GenerateStreamRequest());
}

TEST(VllmConversionTest, TakesPromptAndParameters) {
  vllm::GenerateRequest request;
  request.set_request_id("id");
  for (const uint32_t id : {7, 8, 9}) request.mutable_tokenized()->add_input_ids(id);
  vllm::SamplingParams& params = *request.mutable_sampling_params();
  params.set_temperature(0.5);
  params.set_top_k(3);
  params.set_top_p(0.75);
  params.set_min_p(0.25);
  params.set_repetition_penalty(1.5);
  params.set_presence_penalty(1);
  params.set_frequency_penalty(2);
  params.set_seed(-1);
  params.set_max_tokens(11);
  params.add_stop("end");
  params.add_stop_token_ids(5);
  params.set_ignore_eos(true);
  params.set_logprobs(2);

  const v1::GenerateStreamRequest ours = Converted(request);
  EXPECT_EQ(ours.request_id(), "id");
  EXPECT_THAT(ours.prompt().token_ids().ids(), ElementsAre(7, 8, 9));
  EXPECT_EQ(ours.sampling().temperature(), 0.5f);
  EXPECT_EQ(ours.sampling().top_k(), 3u);
  EXPECT_EQ(ours.sampling().top_p(), 0.75f);
  EXPECT_EQ(ours.sampling().min_p(), 0.25f);
  EXPECT_EQ(ours.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(ours.sampling().presence_penalty(), 1);
  EXPECT_EQ(ours.sampling().frequency_penalty(), 2);
  EXPECT_EQ(ours.sampling().seed(), 0xFFFFFFFFu);
  EXPECT_EQ(ours.stopping().max_new_tokens(), 11u);
  EXPECT_THAT(ours.stopping().stop(), ElementsAre("end"));
  EXPECT_THAT(ours.stopping().stop_token_ids(), ElementsAre(5));
  EXPECT_TRUE(ours.stopping().ignore_eos());
  EXPECT_EQ(ours.logprobs(), 2u);
}

TEST(VllmConversionTest, ZerosAreUnset) {
  vllm::GenerateRequest request;
  request.set_text("text");
  const v1::GenerateStreamRequest ours = Converted(request);
  EXPECT_EQ(ours.prompt().text(), "text");
  EXPECT_FALSE(ours.sampling().has_temperature());
  EXPECT_FALSE(ours.sampling().has_top_k());
  EXPECT_FALSE(ours.sampling().has_top_p());
  EXPECT_FALSE(ours.sampling().has_min_p());
  EXPECT_FALSE(ours.sampling().has_repetition_penalty());
  EXPECT_FALSE(ours.sampling().has_seed());
  EXPECT_FALSE(ours.stopping().has_max_new_tokens());
  EXPECT_FALSE(ours.has_logprobs());
}

TEST(VllmConversionTest, RefusesWhatItDoesNotDo) {
  vllm::GenerateRequest request;
  request.mutable_sampling_params()->set_regex("a*");
  const absl::Status status = ToGenerateStreamRequest(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("sampling_params.regex"));

  request.clear_sampling_params();
  request.add_extra_mm_inputs();
  EXPECT_THAT(std::string(ToGenerateStreamRequest(request).status().message()),
              HasSubstr("mm_inputs"));
}

TEST(VllmConversionTest, GenerationsAreAtLeastOneAndFitTheServer) {
  const EngineOptions options = {.max_running_requests = 2, .max_waiting_requests = 3};
  vllm::SamplingParams params;
  EXPECT_EQ(NumGenerations(params, options).value_or(-1), 1);
  params.set_n(5);
  EXPECT_EQ(NumGenerations(params, options).value_or(-1), 5);
  params.set_n(6);
  EXPECT_THAT(std::string(NumGenerations(params, options).status().message()),
              HasSubstr("n is 6; this server runs and queues at most 5"));
}

TEST(VllmConversionTest, AlternativesOnlyIfAskedFor) {
  const std::vector<TokenOutput> tokens = {
      {.id = 4, .logprob = -1, .top = {{.id = 4, .logprob = -1}, {.id = 5, .logprob = -2}}}};
  vllm::OutputLogProbs with, without;
  AddLogprobs(tokens, 2, with);
  EXPECT_THAT(with.token_ids(), ElementsAre(4));
  EXPECT_THAT(with.token_logprobs(), ElementsAre(-1));
  ASSERT_EQ(with.top_logprobs_size(), 1);
  EXPECT_THAT(with.top_logprobs(0).token_ids(), ElementsAre(4, 5));
  EXPECT_THAT(with.top_logprobs(0).values(), ElementsAre(-1, -2));
  AddLogprobs(tokens, 0, without);
  EXPECT_EQ(without.token_logprobs_size(), 1);
  EXPECT_EQ(without.top_logprobs_size(), 0);
}

TEST(VllmConversionTest, CompletionNamesTheTokenThatStoppedIt) {
  const std::vector<uint32_t> stops = {9};
  vllm::GenerateComplete complete;
  complete.add_output_ids(4);
  complete.add_output_ids(9);
  SetCompletion({.reason = FinishReason::kStop,
                 .prompt_tokens = 3,
                 .cached_tokens = 1,
                 .completion_tokens = 2},
                stops, complete);
  EXPECT_EQ(complete.finish_reason(), "stop");
  EXPECT_EQ(complete.prompt_tokens(), 3u);
  EXPECT_EQ(complete.cached_tokens(), 1u);
  EXPECT_EQ(complete.completion_tokens(), 2u);
  EXPECT_EQ(complete.matched_token_id(), 9u);

  vllm::GenerateComplete full;
  full.add_output_ids(9);
  SetCompletion({.reason = FinishReason::kLength, .completion_tokens = 1}, stops, full);
  EXPECT_EQ(full.finish_reason(), "length");
  EXPECT_EQ(full.matched_stop_case(), vllm::GenerateComplete::MATCHED_STOP_NOT_SET);
}

TEST(VllmConversionTest, LoadsAreTheSnapshot) {
  EngineSnapshot snapshot;
  snapshot.pool.capacity_bytes = 1000;
  snapshot.pool.used_bytes = 250;
  snapshot.tokens_by_rung[0] = 10;
  snapshot.tokens_by_rung[1] = 20;
  snapshot.headroom_tokens_current = 70;
  snapshot.running = 2;
  snapshot.waiting = 2;
  snapshot.waiting_prompt_tokens = 99;
  snapshot.generated_tokens_per_second = 12.5;
  snapshot.prefix_query_tokens_total = 8;
  snapshot.prefix_hit_tokens_total = 2;
  const EngineOptions options = {.max_running_requests = 4};
  const vllm::GetLoadsResponse response =
      ToLoads(snapshot, options, absl::FromUnixSeconds(1'700'000'000));
  EXPECT_EQ(response.timestamp(), "2023-11-14T22:13:20+00:00");
  ASSERT_EQ(response.loads_size(), 1);
  const vllm::SchedulerLoad& load = response.loads(0);
  EXPECT_EQ(load.num_running_reqs(), 2);
  EXPECT_EQ(load.num_waiting_reqs(), 2);
  EXPECT_EQ(load.num_total_reqs(), 4);
  EXPECT_EQ(load.num_used_tokens(), 30);
  EXPECT_EQ(load.max_total_num_tokens(), 100);
  EXPECT_EQ(load.token_usage(), 0.25);
  EXPECT_EQ(load.gen_throughput(), 12.5);
  EXPECT_EQ(load.cache_hit_rate(), 0.25);
  EXPECT_EQ(load.utilization(), 2);
  EXPECT_EQ(load.max_running_requests(), 4);
  EXPECT_EQ(load.num_waiting_uncached_tokens(), 99);
}

}  // namespace
}  // namespace whit
