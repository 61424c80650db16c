#include "server/response_conversion.h"

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/metrics/engine_metrics.h"

namespace whit {
namespace {

Completion Example() {
  Completion completion;
  completion.reason = FinishReason::kLength;
  completion.prompt_tokens = 5;
  completion.cached_tokens = 2;
  completion.completion_tokens = 7;
  completion.kv.true_bytes = 1000;
  completion.kv.fp16_equivalent_bytes = 900;
  completion.kv.mean_bits = 17.5;
  completion.kv.bytes_by_rung[static_cast<size_t>(Rung::kFp16)] = 990;
  completion.kv.tokens_by_rung[static_cast<size_t>(Rung::kFp16)] = 11;
  completion.queue_time = absl::Milliseconds(250);
  completion.prefill_time = absl::Milliseconds(500);
  completion.decode_time = absl::Seconds(2);
  return completion;
}

TEST(ToUtf8Test, ReplacesWhatIsNotUtf8) {
  EXPECT_EQ(ToUtf8("gr\xc3\xbc\xc3\x9f"), "grüß");
  EXPECT_EQ(ToUtf8("a\xff"
                   "b\xc3"),
            "a\uFFFD"
            "b\uFFFD");
}

TEST(FinishReasonTest, EachHasItsOwnNameAndProto) {
  for (const auto& [reason, proto, name] :
       {std::tuple{FinishReason::kStop, v1::FINISH_REASON_STOP, "stop"},
        {FinishReason::kLength, v1::FINISH_REASON_LENGTH, "length"},
        {FinishReason::kCancelled, v1::FINISH_REASON_CANCELLED, "cancelled"},
        {FinishReason::kDeadline, v1::FINISH_REASON_DEADLINE, "deadline"},
        {FinishReason::kError, v1::FINISH_REASON_ERROR, "error"}}) {
    EXPECT_EQ(ToProto(reason), proto);
    EXPECT_EQ(FinishReasonName(reason), name);
  }
}

TEST(SetCompletionTest, FillsTheLastMessage) {
  v1::GenerateStreamResponse response;
  SetCompletion(Example(), PrecisionPolicySpec(), response);
  EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.usage().prompt_tokens(), 5u);
  EXPECT_EQ(response.usage().cached_tokens(), 2u);
  EXPECT_EQ(response.usage().completion_tokens(), 7u);
  EXPECT_EQ(response.kv_cache().true_bytes(), 1000u);
  EXPECT_EQ(response.kv_cache().fp16_equivalent_bytes(), 900u);
  EXPECT_EQ(response.kv_cache().mean_bits(), 17.5);
  EXPECT_EQ(response.kv_cache().policy(), "fp16");
  // Rungs that hold nothing are left out.
  ASSERT_EQ(response.kv_cache().rungs_size(), 1);
  EXPECT_EQ(response.kv_cache().rungs(0).rung(), "FP16");
  EXPECT_EQ(response.kv_cache().rungs(0).tokens(), 11);
  EXPECT_EQ(response.kv_cache().rungs(0).bytes(), 990u);
  EXPECT_EQ(response.timings().queue_seconds(), 0.25);
  EXPECT_EQ(response.timings().prefill_seconds(), 0.5);
  EXPECT_EQ(response.timings().decode_seconds(), 2);
}

EngineSnapshot BusyEngine() {
  EngineSnapshot snapshot;
  snapshot.pool.capacity_bytes = 4096;
  snapshot.pool.used_bytes = 1024;
  snapshot.pool.reclaimable_bytes = 512;
  snapshot.pool.used_bytes_by_rung[static_cast<size_t>(Rung::kFp16)] = 1024;
  snapshot.reserved_bytes = 2048;
  snapshot.reservable_bytes = 4000;
  snapshot.ceiling = Rung::kK4V4;
  snapshot.cached_prefixes = 4;
  snapshot.capacity_tokens_floor = 160;
  snapshot.fp16_equivalent_bytes = 1000;
  snapshot.tokens_by_rung[static_cast<size_t>(Rung::kFp16)] = 12;
  snapshot.mean_bits = 16.5;
  snapshot.headroom_tokens_floor = 20;
  snapshot.headroom_tokens_current = 10;
  snapshot.running = 2;
  snapshot.waiting = 3;
  snapshot.waiting_prompt_tokens = 300;
  snapshot.prompt_tokens_total = 44;
  snapshot.generated_tokens_total = 55;
  snapshot.prefix_query_tokens_total = 66;
  snapshot.prefix_hit_tokens_total = 33;
  snapshot.decisions_total[static_cast<size_t>(Rung::kK4V4)] = 77;
  snapshot.demotions_total[static_cast<size_t>(Rung::kFp16)][static_cast<size_t>(Rung::kK4V2)] = 8;
  snapshot.price = 0.125;
  snapshot.estimated_wait = absl::Milliseconds(2500);
  snapshot.draining = true;
  return snapshot;
}

TEST(ToCapacityResponseTest, ShowsSnapshotAndLimits) {
  EngineOptions options;
  options.max_running_requests = 8;
  options.max_waiting_requests = 9;
  options.max_waiting_prompt_tokens = 999;
  const v1::GetCapacityResponse response = ToCapacityResponse(BusyEngine(), options);
  EXPECT_EQ(response.kv_cache_capacity_bytes(), 4096u);
  EXPECT_EQ(response.kv_cache_used_bytes(), 1024u);
  EXPECT_EQ(response.kv_cache_reclaimable_bytes(), 512u);
  EXPECT_EQ(response.kv_cache_reserved_bytes(), 2048u);
  EXPECT_EQ(response.headroom_tokens_floor(), 20u);
  EXPECT_EQ(response.headroom_tokens_current(), 10u);
  EXPECT_EQ(response.requests_running(), 2u);
  EXPECT_EQ(response.requests_waiting(), 3u);
  EXPECT_EQ(response.waiting_prompt_tokens(), 300u);
  EXPECT_EQ(response.max_running_requests(), 8u);
  EXPECT_EQ(response.max_waiting_requests(), 9u);
  EXPECT_EQ(response.rungs_size(), 1);
  EXPECT_TRUE(response.draining());
  EXPECT_EQ(response.kv_cache_fp16_equivalent_bytes(), 1000u);
  EXPECT_EQ(response.kv_cache_saved_bytes(), -536);
  EXPECT_EQ(response.controller_price(), 0.125);
  EXPECT_EQ(response.estimated_wait_seconds(), 2.5);
  EXPECT_EQ(response.max_waiting_prompt_tokens(), 999u);
}

// "name{label=value,…}" to value.
std::map<std::string, double> Samples(const std::vector<prometheus::MetricFamily>& families) {
  std::map<std::string, double> samples;
  for (const prometheus::MetricFamily& family : families) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      std::string key = family.name;
      for (const auto& label : metric.label) key += "{" + label.name + "=" + label.value + "}";
      samples[key] = family.type == prometheus::MetricType::Counter ? metric.counter.value
                                                                    : metric.gauge.value;
    }
  }
  return samples;
}

TEST(ToMetricFamiliesTest, PublishesTheSameSnapshot) {
  EngineOptions options;
  options.max_running_requests = 8;
  options.max_waiting_requests = 9;
  options.max_waiting_prompt_tokens = 999;
  std::map<std::string, double> samples = Samples(ToMetricFamilies(BusyEngine(), options, 64));
  EXPECT_EQ(samples["whit_kv_cache_capacity_bytes"], 4096);
  EXPECT_EQ(samples["whit_kv_cache_reservable_bytes"], 4000);
  EXPECT_EQ(samples["whit_kv_cache_rung_bits_per_element{rung=K2V2}"], 2.25);
  EXPECT_EQ(samples["whit_kv_cache_rung_bits_per_element{rung=K8V4}"], 6.25);
  EXPECT_EQ(samples["whit_kv_cache_rung_bits_per_element{rung=FP16}"], 16);
  EXPECT_EQ(samples["whit_kv_cache_ceiling_bits_per_element"], 4.25);
  // Far from three quarters of 4,000.
  EXPECT_EQ(samples["whit_controller_pressure"], 0);
  EXPECT_EQ(samples["whit_admission_utilization_ratio"], 2.5);
  EXPECT_EQ(samples["whit_requests_running_limit"], 8);
  EXPECT_EQ(samples["whit_admission_queue_requests_limit"], 9);
  EXPECT_EQ(samples["whit_admission_queue_prompt_tokens_limit"], 999);
  EXPECT_EQ(samples["whit_prefix_cache_prefixes"], 4);
  EXPECT_EQ(samples["whit_kv_cache_used_bytes{rung=FP16}"], 1024);
  EXPECT_EQ(samples.count("whit_kv_cache_used_bytes{rung=K2V2}"), 1u);
  EXPECT_EQ(samples["whit_kv_cache_reserved_bytes"], 2048);
  EXPECT_EQ(samples["whit_kv_cache_reclaimable_bytes"], 512);
  EXPECT_EQ(samples["whit_kv_cache_saved_bytes"], -536);
  EXPECT_EQ(samples["whit_kv_cache_bits_per_element"], 16.5);
  EXPECT_EQ(samples["whit_kv_cache_tokens{rung=FP16}"], 12);
  EXPECT_EQ(samples["whit_admission_headroom_tokens{precision=floor}"], 20);
  EXPECT_EQ(samples["whit_admission_headroom_tokens{precision=current}"], 10);
  EXPECT_EQ(samples["whit_admission_queue_requests"], 3);
  EXPECT_EQ(samples["whit_admission_queue_prompt_tokens"], 300);
  EXPECT_EQ(samples["whit_admission_estimated_wait_seconds"], 2.5);
  EXPECT_EQ(samples["whit_controller_decisions_total{rung=K4V4}"], 77);
  EXPECT_EQ(samples["whit_controller_decisions_total{rung=K2V2}"], 0);
  EXPECT_EQ(samples["whit_demotions_total{from=FP16}{to=K4V2}"], 8);
  EXPECT_EQ(samples["whit_demotions_total{from=K4V2}{to=K2V2}"], 0);
  EXPECT_EQ(samples.count("whit_demotions_total{from=K2V2}{to=K4V2}"), 0u);
  EXPECT_EQ(samples["whit_controller_price"], 0.125);
  EXPECT_EQ(samples["whit_requests_running"], 2);
  EXPECT_EQ(samples["whit_requests_waiting"], 3);
  EXPECT_EQ(samples["whit_prompt_tokens_total"], 44);
  EXPECT_EQ(samples["whit_generation_tokens_total"], 55);
  EXPECT_EQ(samples["whit_prefix_cache_query_tokens_total"], 66);
  EXPECT_EQ(samples["whit_prefix_cache_hit_tokens_total"], 33);
}

TEST(ToMetricFamiliesTest, AFullCacheShowsAsPressure) {
  EngineSnapshot full = BusyEngine();
  full.pool.used_bytes = full.reserved_bytes = full.reservable_bytes;
  EXPECT_EQ(Samples(ToMetricFamilies(full, {}, 64))["whit_controller_pressure"], 4);
}

TEST(ToVllmMetricFamiliesTest, CountsWhatAdmissionCounts) {
  EXPECT_THAT(Samples(ToVllmMetricFamilies(BusyEngine(), "small")),
              testing::UnorderedElementsAre(
                  testing::Pair("vllm:num_requests_running{model_name=small}", 2),
                  testing::Pair("vllm:num_requests_waiting{model_name=small}", 3),
                  testing::Pair("vllm:kv_cache_usage_perc{model_name=small}", 2048.0 / 4000),
                  testing::Pair("vllm:cache_config_info{block_size=16}{num_gpu_blocks=10}", 1)));
  EXPECT_EQ(Samples(ToVllmMetricFamilies({}, "m"))["vllm:kv_cache_usage_perc{model_name=m}"], 0);
}

}  // namespace
}  // namespace whit
