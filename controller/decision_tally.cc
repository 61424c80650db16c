#include "controller/decision_tally.h"

#include <numeric>

#include "controller/rung_choice.h"

namespace whit {

void DecisionTally::Add(const LeavingTokens& tokens, absl::Span<const Rung> rungs) {
  Counts added{};
  for (size_t i = 0; i < rungs.size(); ++i) {
    ++added[static_cast<size_t>(rungs[i])];
    const size_t position = tokens.first_position + i;
    if (position >= token_bits_.size()) continue;
    const auto bits = static_cast<uint32_t>(TokenBits(rungs[i], tokens.head_dim));
    token_bits_[position].fetch_add(bits, std::memory_order_relaxed);
    token_count_[position].fetch_add(1, std::memory_order_relaxed);
  }
  for (int i = 0; i < kNumRungs; ++i) {
    if (added[i] > 0) counts_[i].fetch_add(added[i], std::memory_order_relaxed);
  }
}

DecisionTally::Counts DecisionTally::counts() const {
  Counts counts;
  for (int i = 0; i < kNumRungs; ++i) counts[i] = counts_[i].load(std::memory_order_relaxed);
  return counts;
}

double DecisionTally::MeanBits(int position, int head_dim) const {
  if (static_cast<size_t>(position) >= token_bits_.size()) return 0;
  const uint32_t count = token_count_[position].load(std::memory_order_relaxed);
  if (count == 0) return 0;
  return token_bits_[position].load(std::memory_order_relaxed) / (2.0 * head_dim * count);
}

void AddCounts(const DecisionTally::Counts& counts, DecisionTally::Counts& total) {
  for (int i = 0; i < kNumRungs; ++i) total[i] += counts[i];
}

int64_t NumDecisions(const DecisionTally::Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

double MeanPackedBits(const DecisionTally::Counts& counts, int head_dim) {
  const int64_t decisions = NumDecisions(counts);
  if (decisions == 0) return 0;
  double bits = 0;
  for (int i = 0; i < kNumRungs; ++i) {
    bits += static_cast<double>(counts[i]) * PackedBits(static_cast<Rung>(i), head_dim);
  }
  return bits / static_cast<double>(decisions);
}

}  // namespace whit
