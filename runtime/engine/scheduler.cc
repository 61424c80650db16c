#include "runtime/engine/scheduler.h"

#include <algorithm>

namespace whit {
namespace {

using Logits = ForwardSlice::Logits;

// The next slice of a prompt ends here at the latest: with its unscored tokens, or at its end.
int LongestSlice(const SequenceView& sequence) {
  const int unscored = sequence.prompt_tokens - sequence.scored_tokens;
  return unscored > 0 ? unscored : sequence.prompt_tokens;
}

bool IsScoredNext(const SequenceView& sequence) {
  return sequence.scored_tokens > 0 && sequence.scored_tokens == sequence.prompt_tokens;
}

Logits LogitsOfPromptSlice(const SequenceView& sequence, int num_tokens) {
  if (IsScoredNext(sequence)) return Logits::kAll;
  const int unscored = sequence.prompt_tokens - sequence.scored_tokens;
  return num_tokens == unscored ? Logits::kLast : Logits::kNone;
}

// Hands out a step's prompt tokens.
class PromptBudget {
 public:
  PromptBudget(absl::Span<const SequenceView> sequences, int scored_rows)
      : sequences_(sequences), granted_(sequences.size(), 0), scored_rows_(scored_rows) {}

  // Gives at most `tokens` more, in the order of `prompts`; returns how many were given.
  int Grant(absl::Span<const size_t> prompts, int tokens) {
    int left = tokens;
    for (size_t i : prompts) {
      int more = std::min(left, LongestSlice(sequences_[i]) - granted_[i]);
      if (IsScoredNext(sequences_[i])) {
        more = std::min(more, scored_rows_);
        scored_rows_ -= more;
      }
      granted_[i] += more;
      left -= more;
    }
    return tokens - left;
  }

  int granted(size_t sequence) const { return granted_[sequence]; }

 private:
  const absl::Span<const SequenceView> sequences_;
  std::vector<int> granted_;
  int scored_rows_;
};

}  // namespace

std::vector<PlannedSlice> PlanStep(const StepLimits& limits,
                                   absl::Span<const SequenceView> sequences) {
  std::vector<PlannedSlice> plan;
  std::vector<size_t> prompts;
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].decoding) {
      plan.push_back({.sequence = i, .num_tokens = 1, .logits = Logits::kLast});
    } else {
      prompts.push_back(i);
    }
  }

  const int room = limits.max_step_tokens - static_cast<int>(plan.size());
  const int tokens = plan.empty() ? room : std::min(room, limits.prefill_chunk_tokens);
  PromptBudget budget(sequences, limits.max_scored_rows);
  const int oldest_first = budget.Grant(prompts, (tokens + 1) / 2);
  std::vector<size_t> shortest_first = prompts;
  std::stable_sort(shortest_first.begin(), shortest_first.end(), [&](size_t a, size_t b) {
    return sequences[a].prompt_tokens < sequences[b].prompt_tokens;
  });
  budget.Grant(shortest_first, tokens - oldest_first);

  for (size_t i : prompts) {
    const int num_tokens = budget.granted(i);
    if (num_tokens == 0) continue;
    plan.push_back({.sequence = i,
                    .num_tokens = num_tokens,
                    .logits = LogitsOfPromptSlice(sequences[i], num_tokens)});
  }
  return plan;
}

}  // namespace whit
