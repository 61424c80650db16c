// The promise, driven without a model: real pool, tables, reservations and relief, under random
// requests in a pool that is always too small.
#include "runtime/engine/kv_relief.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kvpool/prefix_index.h"
#include "runtime/model/model.h"

namespace whit {
namespace {

constexpr int kLayers = 3, kHeads = 2, kDim = 16;

ModelConfig Shape() {
  ModelConfig model;
  model.num_layers = kLayers;
  model.num_kv_heads = kHeads;
  model.head_dim = kDim;
  return model;
}

struct Running {
  std::string kind;  // of the prefix cache
  KvTerms terms;
  std::vector<Rung> choices;  // of which its policy draws
  std::vector<int32_t> prompt;
  int total_tokens = 0;
  size_t reserved = 0;
  PageTable table;

  int tokens() const { return table.num_tokens(); }
  bool decodes() const { return tokens() >= static_cast<int>(prompt.size()); }
};

// What EngineCore and Model do between them with pages, but for the numbers in these.
class Simulation {
 public:
  explicit Simulation(size_t slabs, uint32_t seed)
      : rng_(seed),
        pool_(
            *PagePool::Create({.capacity_bytes = slabs * PagePool::kSlabBytes, .head_dim = kDim})),
        usable_(PagePool::UsableBytes(slabs * PagePool::kSlabBytes)),
        relief_(*pool_, threads_, kLayers, kHeads) {
    for (int i = 0; i < 4096; ++i) row_.push_back(static_cast<float>(rng_() % 100) / 50 - 1);
  }

  // Admits it if its reservation fits.
  bool Start(const char* policy, Rung floor, int prompt_tokens, int new_tokens, uint32_t prompt) {
    const PrecisionPolicySpec spec = *ParsePrecisionPolicy(policy);
    const KvTerms terms = TermsOf(spec, floor, kDefaultRing);
    const int total = prompt_tokens + new_tokens;
    const size_t reserved = ReservationBytes(terms, Shape(), prompt_tokens, total);
    if (reserved > usable_ - reserved_) return false;
    Running running = {.kind = std::string(policy) + std::string(RungName(terms.floor)),
                       .terms = terms,
                       .choices = PossibleRungs(spec),
                       .prompt = {},
                       .total_tokens = total,
                       .reserved = reserved,
                       .table = PageTable(pool_.get(), {kLayers, kHeads}, terms.ring, nullptr)};
    std::mt19937 tokens(prompt);
    for (int i = 0; i < prompt_tokens; ++i) running.prompt.push_back(tokens() % 7);
    const PrefixIndex::Match match = cache_.Find(
        running.kind, absl::MakeConstSpan(running.prompt).first(running.prompt.size() - 1));
    if (match.tokens > 0) running.table = match.table->Fork(match.tokens);
    hits_ += match.tokens > 0 ? 1 : 0;
    reserved_ += reserved;
    running_.push_back(std::move(running));
    return true;
  }

  // Runs a token of each stream and prompts in chunks; who is done leaves. Every invariant is
  // checked.
  void Step() {
    std::vector<KvHolder> holders;
    int left = 256;
    for (Running& running : running_) {
      int tokens = 1;
      if (!running.decodes()) {
        tokens = std::min<int>(left, running.prompt.size() - running.tokens());
        left -= tokens;
      }
      holders.push_back({.table = &running.table, .terms = &running.terms, .step_tokens = tokens});
    }
    const Rung ceiling = relief_.MakeRoom(holders, {.evict = [&] { return cache_.EvictOldest(); },
                                                    .tables = [&] { return cache_.tables(); }});
    capped_ += ceiling < Rung::kK8V8 ? 1 : 0;
    for (size_t i = 0; i < running_.size(); ++i) {
      Run(running_[i], holders[i].step_tokens, std::max(ceiling, running_[i].terms.floor));
      ASSERT_TRUE(running_[i].table.status().ok()) << running_[i].table.status();
    }
    const PagePoolStats stats = pool_->stats();
    most_reserved_ = std::max(most_reserved_, reserved_);
    size_t footprint = FootprintBytes(stats, {}, kDim);
    most_used_ = std::max(most_used_, footprint);
    ASSERT_LE(footprint, usable_);
    ASSERT_LE(stats.used_bytes + stats.reclaimable_bytes, stats.capacity_bytes);
    for (size_t i = 0; i < running_.size();) {
      Running& running = running_[i];
      if (running.tokens() < running.total_tokens) {
        ++i;
        continue;
      }
      ++finished_;
      reserved_ -= running.reserved;
      if (rng_() % 2 == 0) {
        cache_.Insert(running.kind, running.prompt, std::move(running.table));
      }
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  void Cancel(size_t i) {
    reserved_ -= running_[i].reserved;
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  double MeanSettledBytes(const Running& running) const {
    double bytes = 0, pages = 0;
    for (int list = 0; list < kLayers * kHeads; ++list) {
      const int layer = list / kHeads, head = list % kHeads;
      for (int i = 1; i < running.table.num_settled_pages(layer, head); ++i, ++pages) {
        bytes += static_cast<double>(PageBytes(running.table.pages(layer, head)[i].rung, kDim));
      }
    }
    return bytes / pages;
  }

  std::mt19937 rng_;
  ThreadPool threads_{2};
  const std::unique_ptr<PagePool> pool_;
  const size_t usable_;
  PrefixIndex cache_{64};
  KvRelief relief_;
  std::vector<Running> running_;
  size_t reserved_ = 0, most_reserved_ = 0, most_used_ = 0;
  int finished_ = 0, hits_ = 0, capped_ = 0;

 private:
  void Run(Running& running, int num_tokens, Rung cap) {
    const int begin = running.tokens(), end = begin + num_tokens;
    const bool continues = end < static_cast<int>(running.prompt.size());
    for (int list = 0; list < kLayers * kHeads; ++list) {
      const int layer = list / kHeads, head = list % kHeads;
      for (int position = begin; position < end;) {
        const int piece_end =
            std::min(end, (position / Model::kPrefillBlock + 1) * Model::kPrefillBlock);
        running.table.Append(layer, head, piece_end - position,
                             {.keys = row_.data(), .values = row_.data() + 1, .stride = 3});
        position = piece_end;
        if (continues && position % Model::kPrefillBlock != 0) continue;
        PageTable::LeavingPage page;
        while (running.table.NextLeaving(layer, head, &page)) {
          if (running.terms.decides_late && page.first_position + page.tokens > begin) break;
          Rung rungs[kTileTokens];
          for (int i = 0; i < page.tokens; ++i) {
            const std::vector<Rung>& choices = running.choices;
            const bool dearest = rng_() % 4 != 0;
            rungs[i] = std::min(cap, dearest ? choices.back() : choices[rng_() % choices.size()]);
          }
          running.table.Settle(layer, head, absl::MakeConstSpan(rungs, page.tokens));
        }
      }
    }
  }

  std::vector<float> row_;
};

struct Mix {
  const char* name;
  std::vector<std::pair<const char*, Rung>> policies;
};

int64_t NumDemotions(const KvRelief& relief) {
  int64_t demotions = 0;
  for (const auto& row : relief.demotions()) {
    for (int64_t count : row) demotions += count;
  }
  return demotions;
}

class KvReliefPropertyTest : public ::testing::TestWithParam<int> {};

// Over thousands of steps of overload nobody who was admitted ever finds the pool empty.
TEST_P(KvReliefPropertyTest, EveryAdmittedRequestFinishes) {
  const std::vector<Mix> mixes = {
      {"adaptive", {{"adaptive", Rung::kK2V2}}},
      {"adaptive at two floors", {{"adaptive", Rung::kK2V2}, {"adaptive", Rung::kK4V4}}},
      {"everything",
       {{"fp16", Rung::kK2V2},
        {"static:K4V4", Rung::kK2V2},
        {"random:K2V2=1,FP16=1", Rung::kK2V2},
        {"rule", Rung::kK4V2},
        {"learned", Rung::kK2V2},
        {"adaptive", Rung::kK2V2}}},
  };
  const Mix& mix = mixes[GetParam()];
  Simulation simulation(/*slabs=*/40, /*seed=*/GetParam());
  std::mt19937& rng = simulation.rng_;
  int started = 0, cancelled = 0;
  for (int step = 0; step < 6000; ++step) {
    for (int tries = 0; tries < 3; ++tries) {
      const auto& [policy, floor] = mix.policies[rng() % mix.policies.size()];
      started += simulation.Start(policy, floor, 1 + static_cast<int>(rng() % 900),
                                  1 + static_cast<int>(rng() % 200), rng() % 4)
                     ? 1
                     : 0;
    }
    if (rng() % 50 == 0 && !simulation.running_.empty()) {
      simulation.Cancel(rng() % simulation.running_.size());
      ++cancelled;
    }
    simulation.Step();
    if (HasFatalFailure()) FAIL() << mix.name << ", step " << step;
    if (step % 100 == 0) {
      const absl::Status invariants = simulation.pool_->CheckInvariants();
      ASSERT_TRUE(invariants.ok()) << invariants;
    }
  }
  EXPECT_EQ(started,
            simulation.finished_ + cancelled + static_cast<int>(simulation.running_.size()));
  EXPECT_GT(simulation.finished_, 300);
  EXPECT_GT(simulation.hits_, 20);
  // It was an overload.
  EXPECT_GT(simulation.most_reserved_, simulation.usable_ * 9 / 10);
  EXPECT_GT(simulation.most_used_, simulation.usable_ * 9 / 10);
  EXPECT_GT(simulation.capped_, 10);
  EXPECT_GT(NumDemotions(simulation.relief_), 100);
  simulation.running_.clear();
  while (simulation.cache_.EvictOldest()) {
  }
  EXPECT_EQ(simulation.pool_->stats().free_bytes, simulation.pool_->stats().capacity_bytes);
}
INSTANTIATE_TEST_SUITE_P(Mixes, KvReliefPropertyTest, ::testing::Values(0, 1, 2));

// The hardest case: all that is reserved is needed at the same time, in pools of any size.
TEST(KvReliefTest, EveryoneGetsAllThatWasReservedAtOnce) {
  int at_their_floors = 0;
  for (int round = 0; round < 12; ++round) {
    Simulation simulation(/*slabs=*/12 + 5 * round, /*seed=*/round);
    const std::vector<std::pair<const char*, Rung>> kinds = {{"adaptive", Rung::kK2V2},
                                                             {"adaptive", Rung::kK4V4},
                                                             {"learned", Rung::kK4V2},
                                                             {"static:K8V4", Rung::kK2V2}};
    const int kinds_used = 1 + round % 4;
    int started = 0;
    while (simulation.Start(kinds[started % kinds_used].first, kinds[started % kinds_used].second,
                            200 + 40 * (round % 5), 500, started % 3)) {
      ++started;
    }
    ASSERT_GT(started, 0);
    while (!simulation.running_.empty()) {
      simulation.Step();
      if (testing::Test::HasFatalFailure()) FAIL() << "round " << round;
      at_their_floors += simulation.relief_.state().ceiling == Rung::kK2V2 ? 1 : 0;
    }
    EXPECT_EQ(simulation.finished_, started);
    EXPECT_TRUE(simulation.pool_->CheckInvariants().ok());
  }
  EXPECT_GT(at_their_floors, 50);
}

// Long streams that outgrow the pool together: those with the same floor come down alike, none
// below its floor, a few pages a step; and once it is over, new tokens are as good as before.
TEST(KvReliefTest, PrecisionComesDownEvenlyAndOnlyWhileItMust) {
  Simulation simulation(/*slabs=*/120, /*seed=*/5);
  const char* high = "random:K4V4=1,K8V4=2,K8V8=3";
  size_t started = 0;
  for (bool fits = true; fits; started += fits ? 1 : 0) {
    fits = simulation.Start(high, started % 4 == 3 ? Rung::kK8V4 : Rung::kK4V2,
                            40 + 20 * static_cast<int>(started), 2000, started);
  }
  int steps = 0, steps_relieving = 0, changes = 0;
  while (simulation.running_.size() == started) {
    const bool relieving = simulation.relief_.state().relieving;
    const int64_t demotions = NumDemotions(simulation.relief_);
    simulation.Step();
    ASSERT_FALSE(HasFatalFailure());
    // A list's share of each table may come on top of the budget.
    ASSERT_LE(NumDemotions(simulation.relief_) - demotions, 2 * LoweringBudget(256));
    ++steps;
    steps_relieving += relieving ? 1 : 0;
    changes += relieving != simulation.relief_.state().relieving ? 1 : 0;
  }
  EXPECT_GT(NumDemotions(simulation.relief_), 1000);
  EXPECT_GT(steps_relieving, 50);
  EXPECT_LT(changes, steps / 50) << "it oscillates";

  std::vector<double> low;
  for (const Running& running : simulation.running_) {
    for (int list = 0; list < kLayers * kHeads; ++list) {
      const int layer = list / kHeads, head = list % kHeads;
      for (int i = 1; i < running.table.num_settled_pages(layer, head); ++i) {
        ASSERT_GE(running.table.pages(layer, head)[i].rung,
                  std::min(running.terms.floor, Rung::kK4V4));
      }
    }
    if (running.terms.floor == Rung::kK4V2) low.push_back(simulation.MeanSettledBytes(running));
  }
  const auto [least, most] = std::minmax_element(low.begin(), low.end());
  EXPECT_LT(*most, 1.05 * *least);
  EXPECT_LT(*most, static_cast<double>(PageBytes(Rung::kK8V4, kDim)));

  // All but one leave.
  while (simulation.running_.size() > 1) simulation.Cancel(0);
  simulation.Step();
  EXPECT_FALSE(simulation.relief_.state().relieving);
  EXPECT_EQ(simulation.relief_.state().ceiling, Rung::kFp16);
}

}  // namespace
}  // namespace whit
