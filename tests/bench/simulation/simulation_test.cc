// Overload, simulated: what is promised to clients and operators holds whatever comes.
#include "tests/bench/simulation/simulation.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "runtime/engine/retry_estimate.h"
#include "tests/bench/simulation/simulation_report.h"

namespace whit {
namespace {

// Lengths like those of conversations, at random times.
std::vector<TracedRequest> Traffic(int requests, double per_second, uint32_t seed) {
  std::mt19937 rng(seed);
  std::exponential_distribution<> gap(per_second);
  std::lognormal_distribution<> prompt(5.5, 1), generated(4, 0.7);
  std::vector<TracedRequest> trace;
  double time = 0;
  for (int i = 0; i < requests; ++i) {
    time += gap(rng);
    trace.push_back({.arrival = absl::Seconds(time),
                     .prompt_tokens = 1 + static_cast<int>(std::min(prompt(rng), 1600.0)),
                     .generated_tokens = 1 + static_cast<int>(std::min(generated(rng), 400.0))});
  }
  return trace;
}

SimulationOptions SmallServer(const char* policy) {
  SimulationOptions options;
  options.clients.policy = *ParsePrecisionPolicy(policy);
  options.engine.kv_cache_bytes = 48 << 20;
  options.engine.max_waiting_requests = 24;
  options.engine.max_waiting_prompt_tokens = 10000;
  options.server.context_length = 2048;
  options.server.lists = 2;
  return options;
}

int Accounted(const SimulationResult& r) {
  int rejected = 0;
  for (const auto& [reason, count] : r.rejected) rejected += count;
  return r.finished + rejected + r.expired_waiting + r.expired_running + r.hung_up;
}

void ExpectNoPromiseBroken(const SimulationResult& r) {
  EXPECT_EQ(r.broken, 0) << testing::PrintToString(r.broken_examples);
  EXPECT_EQ(Accounted(r), r.requests);
}

class OverloadTest : public ::testing::TestWithParam<const char*> {};

// Every admitted request finishes, or its client or its deadline ends it; nothing exceeds its
// bounds at any step, and who is turned away learns why and when to come back (Simulator checks
// it).
TEST_P(OverloadTest, BreaksNoPromise) {
  SimulationOptions options = SmallServer(GetParam());
  const std::vector<TracedRequest> trace = Traffic(200, 1, 7);
  const double rate = SaturatedRate(options, trace, absl::Seconds(30)).value();
  options.clients.deadline = absl::Seconds(60);
  options.clients.hang_up_share = 0.1;
  SimulationResult r = Simulate(options, Repeat(trace, 3 * rate, absl::Minutes(2))).value();
  ExpectNoPromiseBroken(r);
  EXPECT_GT(r.finished, 40);
  EXPECT_GT(r.hung_up, 5);
  EXPECT_GT(r.rejected["queue_full"] + r.rejected["queue_prompt_tokens"] + r.rejected["deadline"],
            r.requests / 3);
  EXPECT_EQ(r.pushback_seconds.values.size(), static_cast<size_t>(r.rejections));
  EXPECT_GE(r.pushback_seconds.Percentile(0), absl::ToDoubleSeconds(kMinRetryAfter));
  EXPECT_LE(r.pushback_seconds.Max(), absl::ToDoubleSeconds(kMaxRetryAfter));
  // It was an overload.
  EXPECT_GT(r.peak_reserved_bytes, 0.8 * r.reservable_bytes);
  EXPECT_GT(r.peak_waiting, 5);
}
INSTANTIATE_TEST_SUITE_P(Policies, OverloadTest,
                         ::testing::Values("fp16", "static:K4V4", "adaptive",
                                           "random:K2V2=1,K8V8=1"));

TEST(SimulationTest, PrecisionMakesRoomForMore) {
  const std::vector<TracedRequest> trace = Traffic(150, 4, 3);
  SimulationResult fp16 = Simulate(SmallServer("fp16"), trace).value();
  SimulationOptions elastic = SmallServer("adaptive");
  elastic.engine.kv_floor = Rung::kK2V2;
  SimulationResult adaptive = Simulate(elastic, trace).value();
  ExpectNoPromiseBroken(fp16);
  ExpectNoPromiseBroken(adaptive);
  EXPECT_GT(adaptive.finished, fp16.finished);
  EXPECT_GT(adaptive.peak_running, 1.5 * fp16.peak_running);
  EXPECT_LT(adaptive.queue_seconds.Mean(), fp16.queue_seconds.Mean());
  EXPECT_GT(adaptive.highest_price, adaptive.least_price);
  ASSERT_GT(adaptive.spread.values.size(), 10u);
  EXPECT_LT(adaptive.spread.Mean(), 1.25) << adaptive.spread.Max();
}

TEST(SimulationTest, PagesComeDownWhereNoPriceYields) {
  SimulationOptions options = SmallServer("random:K4V4=1,K8V8=3");
  options.engine.kv_cache_bytes = 192 << 20;
  options.engine.kv_floor = Rung::kK2V2;
  options.engine.max_waiting_requests = 256;
  options.engine.max_waiting_prompt_tokens = 1 << 20;
  std::vector<TracedRequest> long_ones = Traffic(50, 2, 3);
  for (TracedRequest& request : long_ones) {
    request.prompt_tokens = 600 + request.prompt_tokens / 2;
    request.generated_tokens += 200;
  }
  SimulationResult r = Simulate(options, long_ones).value();
  ExpectNoPromiseBroken(r);
  int64_t demotions = 0;
  for (const auto& row : r.demotions) {
    demotions = std::accumulate(row.begin(), row.end(), demotions);
  }
  EXPECT_GT(demotions, 0);
  EXPECT_GT(r.peak_used_bytes, 0.9 * r.reservable_bytes);
  ASSERT_GT(r.spread.values.size(), 10u);
  EXPECT_LT(r.spread.Mean(), 1.1) << r.spread.Max();
}

TEST(SimulationTest, WhoComesBackWhenToldToGetsThrough) {
  SimulationOptions options = SmallServer("static:K4V4");
  options.engine.max_waiting_requests = 4;
  const std::vector<TracedRequest> burst = Traffic(60, 20, 5);
  SimulationResult once = Simulate(options, burst).value();
  EXPECT_LT(once.finished, once.requests);
  options.clients.retries = 1000;
  SimulationResult again = Simulate(options, burst).value();
  ExpectNoPromiseBroken(again);
  EXPECT_EQ(again.finished, again.requests);
  EXPECT_GE(again.finished_after_retry, again.requests - once.finished);
}

TEST(SimulationTest, WhatIsTooLongIsRejectedWithAReason) {
  SimulationOptions options = SmallServer("fp16");
  options.engine.kv_cache_bytes = 24 << 20;
  const SimulationResult r =
      Simulate(options, {{.arrival = {}, .prompt_tokens = 4000, .generated_tokens = 1},
                         {.arrival = {}, .prompt_tokens = 2000, .generated_tokens = 40}})
          .value();
  EXPECT_EQ(r.broken, 0);
  EXPECT_EQ(r.rejected.at("invalid"), 1);
  EXPECT_EQ(r.rejected.at("too_large"), 1);
}

TEST(SimulationTest, IsTheSameForTheSameSeed) {
  SimulationOptions options = SmallServer("adaptive");
  options.clients.hang_up_share = 0.3;
  const std::vector<TracedRequest> trace = Traffic(60, 5, 2);
  const auto run = [&](uint32_t seed) {
    options.seed = seed;
    SimulationResult result = Simulate(options, trace).value();
    return SimulationJson(result);
  };
  const std::string first = run(1);
  EXPECT_EQ(run(1), first);
  EXPECT_NE(run(2), first);
  const nlohmann::json json = nlohmann::json::parse(first);
  EXPECT_EQ(json["requests"], 60);
  EXPECT_EQ(json["broken_promises"], 0);
}

TEST(StepTimeTest, GrowsWithTokensDepthAndBits) {
  const std::vector<int32_t> tokens(64);
  const auto time = [&](ActivationFormat activations, int count, int depth, double bits) {
    return StepTime(MeasuredStepCosts(),
                    {ForwardSlice{.tokens = absl::MakeConstSpan(tokens).first(count),
                                  .first_position = depth,
                                  .activations = activations}},
                    bits);
  };
  const auto decode = ActivationFormat::kInt16, prompt = ActivationFormat::kInt8;
  EXPECT_GT(time(decode, 1, 0, 4), absl::ZeroDuration());
  EXPECT_GT(time(decode, 1, 4000, 4), time(decode, 1, 0, 4));
  EXPECT_GT(time(decode, 1, 4000, 16), time(decode, 1, 4000, 4));
  EXPECT_GT(time(prompt, 64, 0, 4), time(prompt, 32, 0, 4));
  EXPECT_GT(time(prompt, 64, 4000, 4), time(prompt, 64, 0, 4));
  // A token of a prompt costs less than a step of its own.
  EXPECT_LT(time(prompt, 64, 0, 4), 64 * time(decode, 1, 0, 4));
}

}  // namespace
}  // namespace whit
