// LlamaRunner: llama.cpp on the same file, with as many threads.
#ifndef WHIT_TESTS_BENCH_LLAMA_RUNNER_H_
#define WHIT_TESTS_BENCH_LLAMA_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tests/bench/llama_library.h"
#include "tests/bench/runner.h"

namespace whit {

using LlamaModelPtr = std::unique_ptr<LlamaModel, void (*)(LlamaModel*)>;

// INVALID_ARGUMENT if llama.cpp refuses the file.
absl::StatusOr<LlamaModelPtr> LoadLlamaModel(const LlamaLibrary& library, const std::string& path);

// Keeps its default batch sizes (2,048, in parts of 512). It removes tokens again, so every run
// starts at exactly the depth asked for.
class LlamaRunner : public Runner {
 public:
  struct Options {
    int threads = 1;
    int vocab_size = 0;
    int max_depth = 0;    // of a single sequence
    int32_t kv_type = 0;  // as ParseLlamaKvType gives it
    bool flash_attention = false;
  };
  // `library` and `model` outlive the runner.
  LlamaRunner(const LlamaLibrary& library, LlamaModel& model, const Options& options);

  absl::Status Prepare(int sequences, int depth) override;
  absl::StatusOr<double> Decode(int steps) override;
  absl::StatusOr<double> Prefill(int tokens) override;

 private:
  // Makes a context for so many sequences of so many tokens each, unless there is such a one.
  absl::Status MakeContext(int sequences, int capacity);
  // Appends new tokens to one sequence in one call; logits of the last if wanted.
  absl::Status Append(int sequence, int position, int count, bool logits);
  // Appends new tokens to the first sequence, as fast as can be.
  absl::Status Fill(int position, int count);
  absl::Status Run(int num_tokens);

  const LlamaLibrary& library_;
  LlamaModel& model_;
  const Options options_;
  TokenSource tokens_;
  std::unique_ptr<LlamaContext, std::function<void(LlamaContext*)>> context_;
  int sequences_ = 0;
  int capacity_ = 0;  // tokens of each sequence that the context has room for
  int depth_ = 0;     // tokens in each sequence

  // The batch's arrays.
  std::vector<int32_t> token_, position_, sequence_count_, sequence_;
  std::vector<int32_t*> sequence_pointer_;
  std::vector<int8_t> logits_;
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_LLAMA_RUNNER_H_
