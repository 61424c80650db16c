// What is observed of tokens until their rungs are decided.
#ifndef WHIT_CONTROLLER_TOKEN_SIGNALS_H_
#define WHIT_CONTROLLER_TOKEN_SIGNALS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "kvpool/rung.h"

namespace whit {

// A query that is n tokens old counts kRecentDecay^n in the recent attention.
inline constexpr float kRecentDecay = 0.875f;

// The attention that the tokens of one (layer, KV head) received from the queries since them, their
// own included, and from all query heads of the group. By token, oldest first.
struct ReceivedAttention {
  float* sum = nullptr;      // of the probabilities
  float* squares = nullptr;  // of their squares
  float* recent = nullptr;   // of the probabilities, the older ones decayed
};

// Received attention of a sequence's undecided tokens: those in its recent ring.
//
// Threads: different (layer, head) pairs at once.
class AttentionTally {
 public:
  // The sequence's first `first_position` tokens are decided already.
  AttentionTally(int num_layers, int num_kv_heads, int first_position);

  // Tokens that join, with nothing received.
  void Append(int layer, int kv_head, int num_tokens);
  // The oldest `num_tokens`, whole tiles of them, are decided.
  void Drop(int layer, int kv_head, int num_tokens);

  int first_position(int layer, int kv_head) const { return list(layer, kv_head).first_position; }
  int num_tokens(int layer, int kv_head) const { return list(layer, kv_head).tokens; }
  // By token, oldest first, and zeros up to a multiple of kTileTokens. Valid until the list's next
  // Append or Drop.
  ReceivedAttention received(int layer, int kv_head);

 private:
  struct List {
    int first_position = 0;
    int tokens = 0;
    std::vector<float> sum, squares, recent;
  };
  List& list(int layer, int kv_head) { return lists_[size_t{1} * layer * num_kv_heads_ + kv_head]; }
  const List& list(int layer, int kv_head) const {
    return lists_[size_t{1} * layer * num_kv_heads_ + kv_head];
  }

  int num_kv_heads_;
  std::vector<List> lists_;  // [layer][KV head]
};

// The features of "Don't Waste Bits!" (Haeri Boroujeni et al. 2026): one set a token, for all
// layers and heads.
struct TokenFeatures {
  float entropy = 0;             // H: of the next-token distribution, in nats
  float rarity = 0;              // R: -ln((c + 1) / (N + |V_obs| + 1)), counts of this sequence
  float attention_variance = 0;  // V: mean over heads of the attention row's variance, last layer
  float confidence = 0;          // C: the largest probability of the next-token distribution
};

// Features of a sequence's tokens, by position.
//
// Threads: one at a time; Find from several.
class TokenFeatureLog {
 public:
  // Tokens before `first_position` are decided already: nothing is known of them.
  explicit TokenFeatureLog(int first_position) : first_position_(first_position) {}

  // The next tokens: sets their rarity, the rest comes later.
  void Append(absl::Span<const int32_t> tokens);
  TokenFeatures& at(int position) { return features_[position - first_position_]; }
  // Those of `count` tokens from `position` on.
  absl::Span<const TokenFeatures> Find(int position, int count) const {
    return absl::MakeConstSpan(features_).subspan(position - first_position_, count);
  }

 private:
  int first_position_;
  absl::flat_hash_map<int32_t, int> counts_;  // of each token of this sequence
  std::vector<TokenFeatures> features_;
};

// What of LeavingTokens a policy reads.
struct SignalNeeds {
  bool attention = false;  // received
  bool vectors = false;    // keys, values, key_mean
  bool features = false;
};

// What is observed of one sequence for its policy.
class SequenceSignals {
 public:
  // The sequence's first `first_position` tokens are decided already.
  SequenceSignals(const SignalNeeds& needs, int num_layers, int num_kv_heads, int first_position) {
    if (needs.attention) tally_.emplace(num_layers, num_kv_heads, first_position);
    if (needs.features) features_.emplace(first_position);
  }
  // Null: not needed.
  AttentionTally* tally() { return tally_.has_value() ? &*tally_ : nullptr; }
  TokenFeatureLog* features() { return features_.has_value() ? &*features_ : nullptr; }

 private:
  std::optional<AttentionTally> tally_;
  std::optional<TokenFeatureLog> features_;
};

// Tokens of one (layer, KV head) that leave the ring, and what is known of them.
struct LeavingTokens {
  int layer = 0;
  int kv_head = 0;
  int first_position = 0;
  int count = 0;
  int context = 0;  // tokens that the sequence has
  int head_dim = 0;
  int query_heads = 1;  // of the group that attends to them
  // The rest is set only where the policy needs it (PrecisionPolicy::needs).
  ReceivedAttention received = {};             // [count]
  const float* keys = nullptr;                 // [count][head_dim], rotated
  const float* values = nullptr;               // likewise
  const float* key_mean = nullptr;             // [head_dim], rotated; null: zero
  absl::Span<const TokenFeatures> features{};  // [count]
  // What a bit of a token's codes and scales costs, in the units of the importance (importance.h).
  double price = 0;
};

// What a token at `position` gets, summed over the group's heads, from a query that attends to all
// tokens alike: on average over the queries since it.
inline float EvenAttentionShare(const LeavingTokens& tokens, int position) {
  return 2.0f * static_cast<float>(tokens.query_heads) /
         static_cast<float>(position + 1 + tokens.context);
}

}  // namespace whit

#endif  // WHIT_CONTROLLER_TOKEN_SIGNALS_H_
