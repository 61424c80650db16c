// ModelWeights: every weight of a model, packed for the kernels into one block of memory.
#ifndef WHIT_RUNTIME_MODEL_WEIGHTS_H_
#define WHIT_RUNTIME_MODEL_WEIGHTS_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model_config.h"
#include "runtime/ops/packed_matrix.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

struct LayerWeights {
  std::vector<float> attention_norm, ffn_norm;  // [hidden_size]
  PackedMatrix query, key, value;               // [query_size | kv_size][hidden_size]
  PackedMatrix attention_output;                // [hidden_size][query_size]
  PackedMatrix gate, up;                        // [ffn_size][hidden_size]
  PackedMatrix down;                            // [hidden_size][ffn_size]
};

class ModelWeights {
 public:
  // `file` has passed ReadModelConfig, which gave `config`. RESOURCE_EXHAUSTED if the memory cannot
  // be had.
  static absl::StatusOr<std::unique_ptr<ModelWeights>> Load(const GgufFile& file,
                                                            const ModelConfig& config,
                                                            ThreadPool& pool);
  ~ModelWeights();
  ModelWeights(const ModelWeights&) = delete;
  ModelWeights& operator=(const ModelWeights&) = delete;

  std::vector<LayerWeights> layers;
  std::vector<float> output_norm;  // [hidden_size]
  PackedMatrix embedding;          // [vocab_size][hidden_size]
  PackedMatrix output;             // the same matrix as embedding if they are tied

  size_t bytes() const { return bytes_; }
  // What one decode step reads: all but the embedding table, of which it reads a row.
  size_t bytes_per_step() const;

 private:
  ModelWeights() = default;
  std::byte* memory_ = nullptr;  // mapped; huge pages advised
  size_t bytes_ = 0;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_WEIGHTS_H_
