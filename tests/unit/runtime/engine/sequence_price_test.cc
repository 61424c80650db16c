// What requests pay for their KV bits, in an engine stepped by hand.
#include "runtime/engine/sequence_price.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "controller/generic_importance.h"
#include "controller/rung_choice.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/engine_core.h"
#include "tests/unit/runtime/engine/tiny_runtime.h"

namespace whit {
namespace {

// Losses that differ from token to token as those of a real model do.
class SyntheticPolicy final : public PrecisionPolicy {
 public:
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override {
    for (int i = 0; i < tokens.count; ++i) {
      std::mt19937 rng((tokens.first_position + i) * 64 + tokens.layer * 8 + tokens.kv_head);
      std::normal_distribution<double> log_loss(3, 2.2);
      const double key = std::exp(log_loss(rng)), value = std::exp(log_loss(rng));
      rungs[i] = CheapestRung(key, value, kGenericErrors, tokens.price, tokens.head_dim);
    }
  }
};

constexpr Rung kFloor = Rung::kK4V4;

class SequencePriceTest : public ::testing::Test {
 protected:
  void Start(EngineOptions options) {
    auto pool =
        *PagePool::Create({.capacity_bytes = options.kv_cache_bytes, .head_dim = model().head_dim});
    queue_ = std::make_unique<RequestQueue>(
        AdmissionLimits{.reservable_bytes = PagePool::UsableBytes(options.kv_cache_bytes),
                        .max_running_requests = options.max_running_requests,
                        .max_waiting_requests = options.max_waiting_requests,
                        .max_waiting_prompt_tokens = options.max_waiting_prompt_tokens});
    core_ = std::make_unique<EngineCore>(options, *runtime_.model, *runtime_.tokenizer,
                                         std::move(pool), *queue_, EngineObserver{});
  }

  void Submit(const char* name, double target_bits, int prompt_tokens, int new_tokens,
              Client& client, std::shared_ptr<const PrecisionPolicy> policy = nullptr) {
    ASSERT_TRUE(queue_->TakeTicket().ok());
    QueuedRequest queued;
    queued.request = runtime_.GreedyRequest(runtime_.Prompt(prompt_tokens), new_tokens);
    queued.request.sampling.seed = 1;
    queued.request.kv_policy = *ParsePrecisionPolicy(name);
    queued.request.kv_target_bits = target_bits;
    queued.request.explain = explain_;
    queued.policy = policy != nullptr
                        ? std::move(policy)
                        : MakePrecisionPolicy(queued.request.kv_policy, nullptr).value();
    queued.terms = TermsOf(queued.request.kv_policy, kFloor, kDefaultRing);
    queued.reservation_bytes =
        ReservationBytes(queued.terms, model(), prompt_tokens, prompt_tokens + new_tokens);
    queued.sink = client.sink();
    ASSERT_TRUE(queue_->Submit(std::move(queued)).ok());
  }

  const Completion& Finish(Client& client) {
    while (!client.Poll().completion.has_value()) core_->Step(absl::UnixEpoch());
    return *client.Poll().completion;
  }

  const ModelConfig& model() const { return runtime_.model->config(); }
  int64_t lists() const { return int64_t{1} * model().num_layers * model().num_kv_heads; }

  TinyRuntime runtime_;
  bool explain_ = false;
  std::unique_ptr<RequestQueue> queue_;
  std::unique_ptr<EngineCore> core_;
};

TEST_F(SequencePriceTest, DecisionsAreCountedAndThePriceIsPublished) {
  Start({.max_cached_prefixes = 0});
  Client fixed, adaptive;
  Submit("static:K4V4", 0, 400, 40, fixed);
  Submit("adaptive:4", 0, 400, 40, adaptive);
  core_->Step(absl::UnixEpoch());
  EXPECT_GT(core_->snapshot().price, 0);
  const KvUsage kv = Finish(fixed).kv;
  Finish(adaptive);
  const EngineSnapshot snapshot = core_->snapshot();
  EXPECT_EQ(snapshot.price, 0);  // nobody pays any more
  const auto decided = static_cast<int64_t>(kv.tokens_by_rung[static_cast<size_t>(Rung::kK4V4)]);
  EXPECT_GT(decided, 350);
  const int64_t each = lists() * decided;
  // Adaptive keeps more tokens undecided.
  const int more = RingOf(*ParsePrecisionPolicy("adaptive:4")).tokens_at(439) -
                   RingOf(*ParsePrecisionPolicy("static:K4V4")).tokens_at(439);
  EXPECT_GT(more, 0);
  EXPECT_EQ(NumDecisions(snapshot.decisions_total), 2 * each - lists() * more);
  EXPECT_GE(snapshot.decisions_total[static_cast<size_t>(Rung::kK4V4)], each);
  EXPECT_EQ(snapshot.decisions_total[static_cast<size_t>(Rung::kFp16)], 0);
}

// At head_dim 16, K2V2 takes 3 bits and K8V8 9.
TEST_F(SequencePriceTest, PackedBitsAreHeldAtThePolicysTarget) {
  for (const auto& [name, target] : {std::pair{"adaptive:4", 4.0}, std::pair{"adaptive:6", 6.0}}) {
    Start({.max_cached_prefixes = 0});
    Client client;
    Submit(name, 0, 1000, 900, client, std::make_shared<SyntheticPolicy>());
    Finish(client);
    const double bits = MeanPackedBits(core_->snapshot().decisions_total, model().head_dim);
    EXPECT_NEAR(bits, target, 0.03 * target);
  }
}

constexpr double kTrueBitsTolerance = 0.03;

TEST_F(SequencePriceTest, TrueBitsAreHeldAtTheRequestsTarget) {
  for (const double target : {5.0, 6.0}) {
    Start({.max_cached_prefixes = 0});
    Client client;
    Submit("adaptive", target, 1000, 900, client, std::make_shared<SyntheticPolicy>());
    EXPECT_NEAR(Finish(client).kv.mean_bits, target, kTrueBitsTolerance * target);
  }
}

TEST_F(SequencePriceTest, TrueBitsAreHeldAtTheServersTargetOverAllWhoFollowIt) {
  Start({.max_cached_prefixes = 0, .kv_target_bits = 5.5});
  std::vector<Client> clients(3);
  Client other;  // has a target of its own
  for (int i = 0; i < 3; ++i) {
    Submit("adaptive", 0, 600 + 200 * i, 700, clients[i], std::make_shared<SyntheticPolicy>());
  }
  Submit("adaptive:8", 0, 600, 600, other, std::make_shared<SyntheticPolicy>());
  double bits = 0, elements = 0;
  for (Client& client : clients) {
    const KvUsage& kv = Finish(client).kv;
    bits += 8 * static_cast<double>(kv.true_bytes);
    elements += static_cast<double>(kv.fp16_equivalent_bytes) / sizeof(uint16_t);
  }
  EXPECT_NEAR(bits / elements, 5.5, kTrueBitsTolerance * 5.5);
  EXPECT_GT(Finish(other).kv.mean_bits, 7);
}

// Short requests hold more than the target whatever is decided of them, long ones make up for it.
TEST_F(SequencePriceTest, TrueBitsAreHeldAtTheServersTargetWhileRequestsComeAndGo) {
  constexpr int kPrompts[] = {60, 1500, 300, 900, 100, 1200}, kRunning = 6, kSteps = 1500;
  const auto policy = std::make_shared<SyntheticPolicy>();
  Start({.max_cached_prefixes = 0, .kv_target_bits = 6});
  std::vector<std::unique_ptr<Client>> clients(kRunning);
  double sum = 0, elements = 0;
  for (int step = 0, started = 0; step < kSteps; ++step) {
    for (std::unique_ptr<Client>& client : clients) {
      if (client != nullptr && !client->Poll().completion.has_value()) continue;
      client = std::make_unique<Client>();
      Submit("adaptive", 0, kPrompts[started % 6], 50 + 40 * (started % 5), *client, policy);
      ++started;
    }
    core_->Step(absl::UnixEpoch());
    const EngineSnapshot snapshot = core_->snapshot();
    if (step < kSteps / 10) continue;
    const auto held = static_cast<double>(snapshot.fp16_equivalent_bytes);
    sum += snapshot.mean_bits * held;
    elements += held;
  }
  EXPECT_NEAR(sum / elements, 6, kTrueBitsTolerance * 6);
}

TEST_F(SequencePriceTest, EveryTokenIsExplainedIfThatWasAskedFor) {
  Start({.max_cached_prefixes = 0});
  Client plain, explained;
  Submit("static:K4V4", 0, 200, 30, plain);
  EXPECT_TRUE(Finish(plain).precision.empty());
  explain_ = true;
  Submit("static:K4V4", 0, 200, 30, explained);
  const Completion& completion = Finish(explained);
  const std::vector<int32_t> prompt = runtime_.Prompt(200);
  ASSERT_EQ(completion.precision.size(), 229u);
  for (size_t i = 0; i < completion.precision.size(); ++i) {
    const TokenPrecision& token = completion.precision[i];
    EXPECT_EQ(token.id, i < 200 ? prompt[i] : explained.Poll().ids()[i - 200]);
    // The sink, what was decided, the ring.
    if (i < 16 || i >= 229 - 32) {
      EXPECT_EQ(token.bits, i < 16 ? 16 : 9);
    } else if (i < 229 - 32 - 16) {
      EXPECT_EQ(token.bits, 5);
    }
  }
}

TEST_F(SequencePriceTest, BitsAreDearerInAFullPool) {
  constexpr int kRequests = 8;
  // What the requests pay when they are nearly done.
  const auto price_with = [&](size_t kv_cache_bytes) {
    Start({.kv_cache_bytes = kv_cache_bytes, .max_cached_prefixes = 0});
    std::vector<Client> clients(kRequests);
    for (Client& client : clients) {
      Submit("adaptive:8", 0, 100, 1100, client, std::make_shared<SyntheticPolicy>());
    }
    while (clients.front().Poll().tokens.size() < 1080) core_->Step(absl::UnixEpoch());
    EXPECT_EQ(core_->snapshot().running, kRequests);
    return core_->snapshot().price;
  };
  // Hardly more than the requests reserve.
  const KvTerms terms = TermsOf(*ParsePrecisionPolicy("adaptive:8"), kFloor, kDefaultRing);
  const size_t reserved = kRequests * ReservationBytes(terms, model(), 100, 1200);
  const size_t tight = (reserved / PagePool::kSlabBytes + 8) * PagePool::kSlabBytes;
  EXPECT_GT(price_with(tight), 1.5 * price_with(4 * tight));
}

}  // namespace
}  // namespace whit
