// Model: the weights of a llama-architecture model and its forward pass.
#ifndef WHIT_RUNTIME_MODEL_MODEL_H_
#define WHIT_RUNTIME_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvpool/page_table.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model_config.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// Consecutive tokens of one sequence, to be run through the model.
struct ForwardSlice {
  absl::Span<const int32_t> tokens;  // each in [0, vocab_size)
  int first_position = 0;            // = tokens already in `kv`
  PageTable* kv = nullptr;           // extended by tokens.size() already
  enum class Logits { kNone, kLast, kAll } logits = Logits::kLast;
};

// Threads: one Forward at a time, from the thread pool's owner thread.
class Model {
 public:
  // Repacks the weights; afterwards `file` is not needed. Errors as ReadModelConfig.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const GgufFile& file, ThreadPool& pool);
  ~Model();

  const ModelConfig& config() const;
  size_t weight_bytes() const;            // of the packed weights
  size_t weight_bytes_per_token() const;  // of these, what one decode step reads

  // Runs all slices in one pass and appends their keys and values to their tables. Returns the logits
  // asked for, [rows][vocab_size] in the order of slices and tokens, valid until the next call. A
  // row's logits do not depend, bitwise, on the other slices or on how its prompt was cut into slices.
  absl::Span<const float> Forward(absl::Span<const ForwardSlice> slices);

  // Most tokens one Forward takes.
  static constexpr int kMaxForwardTokens = 512;

 private:
  Model();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_MODEL_H_
