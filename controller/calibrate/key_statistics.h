// What is measured of the keys in a sequence's pages, and of the queries that they meet.
#ifndef WHIT_CONTROLLER_CALIBRATE_KEY_STATISTICS_H_
#define WHIT_CONTROLLER_CALIBRATE_KEY_STATISTICS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvpool/key_means.h"
#include "kvpool/page_table.h"
#include "runtime/model/model.h"
#include "runtime/model/model_config.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// The first page of a sequence is never quantized, and its first tokens are sinks, whose keys are
// like no others: neither is counted.
inline constexpr int kUncountedTokens = kTileTokens;

// Takes RoPE back.
class RopeTable {
 public:
  RopeTable(const ModelConfig& config, int max_tokens);
  // Adds x[head_dim] as it was before RoPE to sums.
  void AddTurnedBack(const float* x, int position, double* sums) const;

 private:
  const int head_dim_, rope_dims_;
  std::vector<float> cosines_, sines_;  // [position][rope_dims / 2]
};

// The mean key of each (layer, KV head) as it is before RoPE and before rotation. The sums depend
// on the order of the tables alone, not on the threads.
class KeyMeanSums {
 public:
  // Of tables of at most `max_tokens`.
  KeyMeanSums(const ModelConfig& config, int max_tokens);

  // Tables hold positions from 0 on, all in FP16.
  void Add(const PageTable& kv, ThreadPool& pool);

  // INVALID_ARGUMENT names a layer whose keys FP16 pages could not hold.
  absl::Status status() const;
  // [layer][KV head][head_dim]; zeros if nothing was counted.
  std::vector<float> Means() const;
  int64_t tokens() const { return tokens_; }

 private:
  void AddHead(int head, const PageTable& kv);

  const int num_kv_heads_, num_heads_, head_dim_;  // num_heads: of all layers
  const RopeTable rope_;
  std::vector<double> sums_;           // [layer][KV head][head_dim]
  std::vector<uint8_t> out_of_range_;  // [layer][KV head]: a flag
  int64_t tokens_ = 0;
};

// The mean query of each (layer, query head).
class QueryMeanSums {
 public:
  // Of windows of at most `max_tokens`.
  QueryMeanSums(const ModelConfig& config, int max_tokens);

  // The rows of one slice, whose first is at `first_position`.
  void Add(const LayerView& view, int first_position, ThreadPool& pool);

  // After RoPE, the mean over the positions of contexts of each of these lengths and over the
  // lengths, rotated: as ImportanceModel has it. A query before RoPE is taken to be the same at all
  // positions, so contexts may be longer than the windows. Zeros if nothing was counted.
  std::vector<float> Means(absl::Span<const int> contexts) const;

 private:
  const ModelConfig& config_;
  const RopeTable rope_;
  std::vector<double> sums_;  // [layer][query head][head_dim]
  int64_t tokens_ = 0;
};

// How much of the keys' energy is in what pages subtract from them, and so need not be coded.
class KeyEnergy {
 public:
  KeyEnergy(const ModelConfig& config, const KeyMeans& means);  // `means` outlives this

  // As KeyMeanSums::Add; the positions are prepared in `means`.
  void Add(const PageTable& kv, ThreadPool& pool);

  // 1 - sum |key - mean|^2 / sum |key|^2, over a layer and over all of them.
  double Explained(int layer) const;
  double Explained() const;

 private:
  struct Sums {
    double energy = 0, residual = 0;
  };
  static double Explained(const Sums& sums);

  const KeyMeans& means_;
  const int num_kv_heads_, head_dim_;
  std::vector<Sums> heads_;  // [layer][KV head]
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_KEY_STATISTICS_H_
