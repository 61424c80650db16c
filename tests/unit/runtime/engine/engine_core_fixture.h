// The engine stepped by hand: what happens between which steps is the test's to decide.
#ifndef WHIT_TESTS_UNIT_RUNTIME_ENGINE_ENGINE_CORE_FIXTURE_H_
#define WHIT_TESTS_UNIT_RUNTIME_ENGINE_ENGINE_CORE_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "runtime/engine/engine_core.h"
#include "runtime/engine/kv_pressure.h"
#include "tests/unit/runtime/engine/tiny_runtime.h"

namespace whit {

inline constexpr absl::Time kNow = absl::UnixEpoch();

class EngineCoreTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { runtime_ = new TinyRuntime(); }
  static void TearDownTestSuite() {
    delete runtime_;
    runtime_ = nullptr;
  }

  void SetUp() override { MakeCore(Limits()); }

  AdmissionLimits Limits() const {
    return {.reservable_bytes = PagePool::UsableBytes(options_.kv_cache_bytes),
            .max_running_requests = options_.max_running_requests,
            .max_waiting_requests = options_.max_waiting_requests,
            .max_waiting_prompt_tokens = options_.max_waiting_prompt_tokens};
  }

  void MakeCore(const AdmissionLimits& limits) {
    auto pool = *PagePool::Create(
        {.capacity_bytes = options_.kv_cache_bytes, .head_dim = model().head_dim});
    core_.reset();
    queue_ = std::make_unique<RequestQueue>(limits);
    EngineObserver observer = {.on_step =
                                   [this](const StepReport& report) {
                                     ++reports_;
                                     prompt_tokens_ += report.prompt_tokens;
                                     generated_tokens_ += report.generated_tokens;
                                     latencies_ +=
                                         static_cast<int>(report.inter_token_latencies.size());
                                   },
                               .on_completion = [this](const Completion&) { ++completions_; }};
    core_ = std::make_unique<EngineCore>(options_, *runtime_->model, *runtime_->tokenizer,
                                         std::move(pool), *queue_, std::move(observer));
  }

  uint64_t Submit(Request request, Client& client) {
    EXPECT_TRUE(queue_->TakeTicket().ok());
    if (!request.sampling.seed.has_value()) request.sampling.seed = 1;
    QueuedRequest queued;
    const int64_t tokens = static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens;
    queued.terms =
        TermsOf(request.kv_policy, request.kv_floor.value_or(options_.kv_floor), options_.kv_ring);
    queued.reservation_bytes = ReservationBytes(
        queued.terms, model(), static_cast<int64_t>(request.prompt.size()), tokens);
    queued.policy = MakePrecisionPolicy(request.kv_policy, options_.policy_file).value();
    queued.submitted = kNow;
    queued.request = std::move(request);
    queued.sink = client.sink();
    const absl::StatusOr<uint64_t> number = queue_->Submit(std::move(queued));
    EXPECT_TRUE(number.ok()) << number.status();
    return number.value_or(0);
  }

  void Step(absl::Time now = kNow) {
    core_->Step(now);
    const absl::Status status = core_->pool().CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
    const EngineSnapshot snapshot = core_->snapshot();
    ASSERT_LE(FootprintBytes(snapshot.pool, {}, model().head_dim), snapshot.reservable_bytes);
    ASSERT_LE(snapshot.reserved_bytes, snapshot.reservable_bytes);
  }

  const Client::Received& Finish(Client& client) {
    for (int i = 0; i < 5000 && !client.Poll().completion.has_value(); ++i) Step();
    EXPECT_TRUE(client.Poll().completion.has_value());
    return client.Poll();
  }

  // Nobody holds anything but the prefix cache.
  void ExpectIdle() {
    EXPECT_EQ(core_->pool().stats().used_bytes, 0u);
    EXPECT_EQ(queue_->state().reserved_bytes, 0u);
    EXPECT_EQ(queue_->state().running, 0);
    EXPECT_EQ(queue_->state().waiting, 0);
  }

  static const ModelConfig& model() { return runtime_->model->config(); }

  static inline TinyRuntime* runtime_ = nullptr;
  EngineOptions options_ = {.kv_cache_bytes = size_t{4} << 20};
  std::unique_ptr<RequestQueue> queue_;
  std::unique_ptr<EngineCore> core_;
  int reports_ = 0, prompt_tokens_ = 0, generated_tokens_ = 0, latencies_ = 0, completions_ = 0;
};

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_RUNTIME_ENGINE_ENGINE_CORE_FIXTURE_H_
