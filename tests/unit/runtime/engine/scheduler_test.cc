#include "runtime/engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace whit {
namespace {

using Logits = ForwardSlice::Logits;

constexpr StepLimits kLimits = {
    .max_step_tokens = 512, .prefill_chunk_tokens = 64, .max_scored_rows = 48};

SequenceView Prompt(int tokens) { return {.prompt_tokens = tokens}; }
SequenceView Scored(int tokens, int scored) {
  return {.prompt_tokens = tokens, .scored_tokens = scored};
}
SequenceView Decoding() { return {.decoding = true}; }

// Tokens planned for each sequence.
std::map<size_t, int> Tokens(const std::vector<PlannedSlice>& plan) {
  std::map<size_t, int> tokens;
  for (const PlannedSlice& slice : plan) tokens[slice.sequence] += slice.num_tokens;
  return tokens;
}

TEST(PlanStepTest, NothingToDoIsAnEmptyPlan) { EXPECT_TRUE(PlanStep(kLimits, {}).empty()); }

TEST(PlanStepTest, ALonePromptTakesTheWholeStep) {
  auto plan = PlanStep(kLimits, {Prompt(2000)});
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].num_tokens, 512);
  EXPECT_EQ(plan[0].logits, Logits::kNone);

  plan = PlanStep(kLimits, {Prompt(512)});
  EXPECT_EQ(plan[0].num_tokens, 512);
  EXPECT_EQ(plan[0].logits, Logits::kLast);
}

TEST(PlanStepTest, BesideDecodesPromptsGetNoMoreThanAChunk) {
  const auto plan = PlanStep(kLimits, {Prompt(2000), Decoding(), Prompt(500), Decoding()});
  ASSERT_EQ(plan.size(), 4u);
  for (int i : {0, 1}) {  // decodes come first
    EXPECT_EQ(plan[i].num_tokens, 1);
    EXPECT_EQ(plan[i].logits, Logits::kLast);
  }
  EXPECT_EQ(Tokens(plan), (std::map<size_t, int>{{0, 32}, {1, 1}, {2, 32}, {3, 1}}));
}

TEST(PlanStepTest, HalfGoesToTheOldestAndTheRestToTheShortest) {
  EXPECT_EQ(Tokens(PlanStep(kLimits, {Prompt(2000), Prompt(1000), Prompt(100), Prompt(900)})),
            (std::map<size_t, int>{{0, 256}, {2, 100}, {3, 156}}));
  // The oldest is the shortest too: what it leaves goes on in both orders.
  EXPECT_EQ(Tokens(PlanStep(kLimits, {Prompt(100), Prompt(1000), Prompt(900)})),
            (std::map<size_t, int>{{0, 100}, {1, 156}, {2, 256}}));
}

TEST(PlanStepTest, ScoredTokensNeedALogitsRowEachAndAreLimited) {
  // First the tokens before the scored ones, of which the last speaks of the first scored one.
  auto plan = PlanStep(kLimits, {Scored(130, 100)});
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].num_tokens, 30);
  EXPECT_EQ(plan[0].logits, Logits::kLast);
  plan = PlanStep(kLimits, {Scored(100, 100), Scored(20, 20), Prompt(7)});
  EXPECT_EQ(Tokens(plan), (std::map<size_t, int>{{0, 48}, {2, 7}}));
  EXPECT_EQ(plan[0].logits, Logits::kAll);
  EXPECT_EQ(plan[1].logits, Logits::kLast);
}

TEST(PlanStepTest, DecodesMayFillTheStep) {
  const StepLimits limits = {
      .max_step_tokens = 4, .prefill_chunk_tokens = 64, .max_scored_rows = 48};
  const std::vector<SequenceView> views(4, Decoding());
  EXPECT_EQ(PlanStep(limits, views).size(), 4u);
  EXPECT_EQ(Tokens(PlanStep(limits, {Decoding(), Decoding(), Decoding(), Prompt(9)})),
            (std::map<size_t, int>{{0, 1}, {1, 1}, {2, 1}, {3, 1}}));
}

// What may be asked of any plan.
void CheckPlan(const StepLimits& limits, const std::vector<SequenceView>& views,
               const std::vector<PlannedSlice>& plan) {
  int decodes = 0, prompt_tokens = 0, scored_rows = 0;
  std::vector<int> planned(views.size(), 0);
  for (const PlannedSlice& slice : plan) {
    ASSERT_LT(slice.sequence, views.size());
    ASSERT_EQ(planned[slice.sequence], 0) << "two slices of one sequence";
    ASSERT_GT(slice.num_tokens, 0);
    planned[slice.sequence] = slice.num_tokens;
    const SequenceView& view = views[slice.sequence];
    if (view.decoding) {
      ASSERT_EQ(slice.logits, Logits::kLast);
      ++decodes;
      continue;
    }
    prompt_tokens += slice.num_tokens;
    ASSERT_LE(slice.num_tokens, view.prompt_tokens);
    if (slice.logits == Logits::kAll) {
      ASSERT_EQ(view.prompt_tokens, view.scored_tokens) << "a row that nobody asked for";
      scored_rows += slice.num_tokens;
    } else {
      ASSERT_LE(slice.num_tokens, view.prompt_tokens - view.scored_tokens)
          << "a scored token without logits";
      ASSERT_EQ(slice.logits == Logits::kLast,
                slice.num_tokens == view.prompt_tokens - view.scored_tokens);
    }
  }
  ASSERT_EQ(decodes, std::count_if(views.begin(), views.end(),
                                   [](const SequenceView& view) { return view.decoding; }))
      << "a decode was starved";
  ASSERT_LE(decodes + prompt_tokens, limits.max_step_tokens);
  ASSERT_LE(scored_rows, limits.max_scored_rows);

  // Prompts: what each may take at most, what the oldest and the shortest must get.
  const int room = limits.max_step_tokens - decodes;
  const int budget = decodes == 0 ? room : std::min(room, limits.prefill_chunk_tokens);
  ASSERT_LE(prompt_tokens, budget);
  const auto longest_slice = [&](const SequenceView& view) {
    return view.prompt_tokens > view.scored_tokens
               ? view.prompt_tokens - view.scored_tokens
               : std::min(view.prompt_tokens, limits.max_scored_rows);
  };
  int oldest = -1, shortest = -1;
  for (int i = 0; i < static_cast<int>(views.size()); ++i) {
    if (views[i].decoding) continue;
    if (oldest < 0) oldest = i;
    if (shortest < 0 || views[i].prompt_tokens < views[shortest].prompt_tokens) shortest = i;
    if (prompt_tokens < budget && planned[i] < longest_slice(views[i])) {
      EXPECT_EQ(views[i].prompt_tokens, views[i].scored_tokens) << "room was left unused";
      EXPECT_EQ(scored_rows, limits.max_scored_rows) << "room was left unused";
    }
  }
  if (oldest < 0) return;
  EXPECT_GE(planned[oldest], std::min(longest_slice(views[oldest]), (budget + 1) / 2));
  if (views[shortest].scored_tokens == 0) {
    EXPECT_GE(planned[shortest], std::min(longest_slice(views[shortest]), budget / 2));
  }
}

// Plays plans forward under random arrivals.
class SimulationTest : public ::testing::TestWithParam<int> {};

TEST_P(SimulationTest, EveryPlanKeepsThePromisesAndEverybodyFinishes) {
  std::mt19937 rng(GetParam());
  const auto random = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
  };
  const StepLimits limits = {.max_step_tokens = random(16, 512),
                             .prefill_chunk_tokens = random(1, 128),
                             .max_scored_rows = random(1, 64)};
  std::vector<SequenceView> running;
  for (int arrivals = 100; arrivals > 0 || !running.empty();) {
    while (arrivals > 0 && running.size() < 16 && random(0, 3) == 0) {
      const int tokens = random(1, 1500);
      running.push_back(random(0, 4) == 0 ? Scored(tokens, random(1, tokens)) : Prompt(tokens));
      --arrivals;
    }
    const auto plan = PlanStep(limits, running);
    ASSERT_NO_FATAL_FAILURE(CheckPlan(limits, running, plan));
    std::vector<bool> ended(running.size(), false);
    for (const PlannedSlice& slice : plan) {
      SequenceView& view = running[slice.sequence];
      if (view.decoding) {
        ended[slice.sequence] = random(0, 40) == 0;
        continue;
      }
      const bool scored = view.scored_tokens > 0;
      view.prompt_tokens -= slice.num_tokens;
      view.scored_tokens = std::min(view.scored_tokens, view.prompt_tokens);
      if (view.prompt_tokens > 0) continue;
      view.decoding = !scored;
      ended[slice.sequence] = scored;
    }
    size_t i = 0;
    std::erase_if(running, [&](const SequenceView&) { return ended[i++]; });
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimulationTest, ::testing::Range(0, 20));

}  // namespace
}  // namespace whit
