#include "controller/token_signals.h"

#include <cmath>

namespace whit {

AttentionTally::AttentionTally(int num_layers, int num_kv_heads, int first_position)
    : num_kv_heads_(num_kv_heads), lists_(size_t{1} * num_layers * num_kv_heads) {
  for (List& list : lists_) list.first_position = first_position;
}

void AttentionTally::Append(int layer, int kv_head, int num_tokens) {
  List& list = this->list(layer, kv_head);
  list.tokens += num_tokens;
  const size_t slots = PagesFor(list.tokens) * kTileTokens;
  for (std::vector<float>* received : {&list.sum, &list.squares, &list.recent}) {
    received->resize(slots);
  }
}

void AttentionTally::Drop(int layer, int kv_head, int num_tokens) {
  List& list = this->list(layer, kv_head);
  for (std::vector<float>* received : {&list.sum, &list.squares, &list.recent}) {
    received->erase(received->begin(), received->begin() + num_tokens);
  }
  list.tokens -= num_tokens;
  list.first_position += num_tokens;
}

ReceivedAttention AttentionTally::received(int layer, int kv_head) {
  List& list = this->list(layer, kv_head);
  return {.sum = list.sum.data(), .squares = list.squares.data(), .recent = list.recent.data()};
}

void TokenFeatureLog::Append(absl::Span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    const int seen = counts_[token]++;
    // Counts before this token: c of it, N of all, over |V_obs| different ones.
    const double different = static_cast<double>(counts_.size()) - (seen == 0 ? 1 : 0);
    const double all = static_cast<double>(features_.size());
    features_.push_back(
        {.rarity = static_cast<float>(-std::log((seen + 1) / (all + different + 1)))});
  }
}

}  // namespace whit
