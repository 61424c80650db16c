// DecisionTally: what was decided of one sequence's tokens.
#ifndef WHIT_CONTROLLER_DECISION_TALLY_H_
#define WHIT_CONTROLLER_DECISION_TALLY_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "controller/token_signals.h"
#include "kvpool/rung.h"

namespace whit {

// A decision is about one token in one (layer, KV head).
//
// Threads: Add from several at once; everything else excludes it.
class DecisionTally {
 public:
  // Tokens up to `num_tokens` are also counted one by one; 0: none are.
  explicit DecisionTally(int num_tokens = 0) : token_bits_(num_tokens), token_count_(num_tokens) {}

  void Add(const LeavingTokens& tokens, absl::Span<const Rung> rungs);

  using Counts = std::array<int64_t, kNumRungs>;
  Counts counts() const;

  // Of the token at `position`: mean packed bits per element over the decisions about it, 0 if
  // there are none.
  double MeanBits(int position, int head_dim) const;

 private:
  std::array<std::atomic<int64_t>, kNumRungs> counts_{};
  // By position: bits of codes and scales, summed over decisions; how many these are.
  std::vector<std::atomic<uint32_t>> token_bits_;
  std::vector<std::atomic<uint32_t>> token_count_;
};

void AddCounts(const DecisionTally::Counts& counts, DecisionTally::Counts& total);
// Decisions, and the mean of their packed bits per element; 0 of none.
int64_t NumDecisions(const DecisionTally::Counts& counts);
double MeanPackedBits(const DecisionTally::Counts& counts, int head_dim);

}  // namespace whit

#endif  // WHIT_CONTROLLER_DECISION_TALLY_H_
