// tests/bench: whit-bench measures the speed of the engine's forward pass beside what the machine
// could do at best (roof) and beside other engines on the same model (peer): llama.cpp within this
// process (llama_runner), those with a Python package in processes of their own (process_runner,
// child_process, and the folder peer for their side). No server.
//
// This file: what is measured of every engine.
#ifndef WHIT_TESTS_BENCH_RUNNER_H_
#define WHIT_TESTS_BENCH_RUNNER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace whit {

class Runner {
 public:
  virtual ~Runner() = default;

  // Brings `sequences` sequences to about `depth` tokens each, `depth` at least.
  virtual absl::Status Prepare(int sequences, int depth) = 0;
  // Seconds for `steps` passes, each of one token of every prepared sequence, with logits.
  virtual absl::StatusOr<double> Decode(int steps) = 0;
  // Seconds for a prompt of `tokens` tokens, from nothing to the logits of its last token. Forgets
  // the prepared sequences.
  virtual absl::StatusOr<double> Prefill(int tokens) = 0;
};

// Tokens for a prompt: the same pseudo-random ones each time, ordinary ones of any vocabulary.
class TokenSource {
 public:
  explicit TokenSource(int vocab_size) : vocab_size_(vocab_size) {}
  int32_t Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const auto first = static_cast<uint64_t>(vocab_size_ / 100);  // special tokens come first
    return static_cast<int32_t>(first + (state_ >> 33) % (vocab_size_ - first));
  }
  std::vector<int32_t> Take(int count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = Next();
    return tokens;
  }

 private:
  const int vocab_size_;
  uint64_t state_ = 42;
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_RUNNER_H_
