// KeyMeans: what keys are taken relative to before they are quantized.
//
// Keys of one (layer, KV head) share a large common part. Before RoPE it is one vector, which
// whit-calibrate measures; RoPE turns it with the position. A page subtracts the average of the
// turned mean over a block of 64 positions, and attention adds q . mean(block) back. It costs no
// stored bit, and since any vector may be subtracted, a page may hold tokens of other blocks too.
#ifndef WHIT_KVPOOL_KEY_MEANS_H_
#define WHIT_KVPOOL_KEY_MEANS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace whit {

// Threads: Prepare excludes readers; for everything else any thread may call.
class KeyMeans {
 public:
  static constexpr int kBlockPositions = 64;

  struct Shape {
    int num_layers = 0;
    int num_kv_heads = 0;
    int head_dim = 0;
    // RoPE as the model applies it: pairs (2i, 2i+1) turn by position * inverse_frequencies[i];
    // further dimensions do not turn.
    std::vector<float> inverse_frequencies;
  };

  // `means` is [layer][KV head][head_dim], before RoPE and before rotation.
  KeyMeans(Shape shape, std::vector<float> means);

  // Makes the blocks of positions [0, num_positions) available.
  void Prepare(int num_positions);

  static uint16_t Block(int position) { return static_cast<uint16_t>(position / kBlockPositions); }
  // [head_dim], rotated as pages are (quantizer.h). The block has been prepared.
  const float* mean(uint16_t block, int layer, int kv_head) const {
    return blocks_[block].data() +
           (size_t{1} * layer * shape_.num_kv_heads + kv_head) * shape_.head_dim;
  }

 private:
  const Shape shape_;
  const std::vector<float> means_;
  std::vector<std::vector<float>> blocks_;  // [block][layer][KV head][head_dim]
};

}  // namespace whit

#endif  // WHIT_KVPOOL_KEY_MEANS_H_
