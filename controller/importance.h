// Importance: how much an error in a token's key or value will move what the model says. Learned by
// whit-calibrate, kept in the policy file.
#ifndef WHIT_CONTROLLER_IMPORTANCE_H_
#define WHIT_CONTROLLER_IMPORTANCE_H_

#include <array>
#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "controller/token_signals.h"
#include "kvpool/rung.h"

namespace whit {

// What the model sees of a token, in this order; ln is of max(x, 1e-12).
enum class ImportanceFeature {
  kAttention,          // ln(received sum / queries that could attend to it)
  kAttentionSquares,   // ln(received squares / queries that could attend to it)
  kRecentAttention,    // ln(received recent)
  kKeyNorm,            // ln |k - mean|
  kValueNorm,          // ln |v|
  kExpectedAttention,  // ln of the sum over the group's heads of exp(scale * k . mean query)
  kQueries,            // ln(queries that could attend to it) = ln(context - position)
  kPosition,           // ln(position + 1)
};
inline constexpr int kNumImportanceFeatures = 8;
using ImportanceFeatures = std::array<float, kNumImportanceFeatures>;

// Weights of a small network, one for all (layer, KV head) pairs, which an embedding tells apart.
//   z = clamp((feature - center) / spread, -6, 6), by pair
//   h1 = relu(W1 z + E[pair]), h2 = relu(W2 h1 + b2), y = W3 h2 + b3[pair]
//   importance of the key exp(y[0]), of the value exp(y[1]): per unit of squared error, per query
//   to come
// E holds W1's part of the pair's embedding and the bias, already multiplied.
struct ImportanceModel {
  static constexpr int kHidden = 64;

  std::vector<float> centers, spreads;  // [pair][feature]; pair = layer * num_kv_heads + kv_head
  std::vector<float> pair_bias1;        // E: [pair][kHidden]
  std::vector<float> weights1;          // [feature][kHidden]
  std::vector<float> weights2;          // [kHidden in][kHidden out]
  std::vector<float> bias2;             // [kHidden]
  std::vector<float> weights3;          // [kHidden][2]
  std::vector<float> pair_bias3;        // [pair][2]
  std::vector<float> query_means;       // [layer][query head][head_dim], after RoPE, rotated
  // Squared error of a rung, in |k - mean|^2 and |v|^2, times how much worse than its first-order
  // estimate it was measured to be; by bits 2, 4, 8.
  std::array<float, 3> key_error{}, value_error{};

  bool operator==(const ImportanceModel&) const = default;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_IMPORTANCE_H_
