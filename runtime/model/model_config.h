// The shape of a llama-architecture model, read from a GGUF file's metadata.
#ifndef WHIT_RUNTIME_MODEL_MODEL_CONFIG_H_
#define WHIT_RUNTIME_MODEL_MODEL_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/policy_file.h"
#include "runtime/model/gguf.h"

namespace whit {

struct ModelConfig {
  std::string name;
  std::string architecture;
  uint64_t num_parameters = 0;
  int context_length = 0;
  int vocab_size = 0;
  int hidden_size = 0;
  int ffn_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // multiple of 16
  float rms_norm_epsilon = 0;
  // RoPE rotates pairs (2i, 2i+1) of the first rope_dims dimensions (GGUF's llama order) by
  // position * rope_inverse_frequencies[i]; the frequencies include linear or Llama-3 scaling.
  int rope_dims = 0;
  std::vector<float> rope_inverse_frequencies;
  bool tied_embeddings = false;

  int query_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
  // K and V elements that one token adds over all layers and KV heads.
  size_t kv_elements_per_token() const { return size_t{2} * num_layers * num_kv_heads * head_dim; }
};

// UNIMPLEMENTED names an architecture or feature that is not supported; INVALID_ARGUMENT names a
// value out of range or a tensor that is missing or of the wrong shape.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file);

// By which the model's policy file is known. `config` was read from `file`.
ModelIdentity IdentityOf(const GgufFile& file, const ModelConfig& config);

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_MODEL_CONFIG_H_
