// What tests of the engine run on: a tiny model with its tokenizer, a plain loop over the model to
// compare with, and a client that collects what its stream brings.
#ifndef WHIT_TESTS_UNIT_RUNTIME_ENGINE_TINY_RUNTIME_H_
#define WHIT_TESTS_UNIT_RUNTIME_ENGINE_TINY_RUNTIME_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/token_sink.h"
#include "runtime/model/model.h"
#include "runtime/ops/thread_pool.h"
#include "runtime/text/tokenizer.h"

namespace whit {

struct TinyRuntime {
  TinyRuntime();

  ThreadPool threads{2};
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;

  // Tokens of printable text, different for each seed.
  std::vector<int32_t> Prompt(int length, uint32_t seed = 1) const;
  Request GreedyRequest(std::vector<int32_t> prompt, int64_t max_new_tokens) const;

  // The logits after each token but the last, from one token a pass. Tokens behind the prompt are
  // run as generated ones are, with finer activations.
  std::vector<std::vector<float>> ReferenceLogits(const std::vector<int32_t>& tokens,
                                                  size_t prompt_tokens) const;
  // Greedy continuation, likewise.
  std::vector<int32_t> ReferenceGreedy(const std::vector<int32_t>& prompt, int num_tokens) const;
  // The text of tokens: bytes of ordinary ones, as UTF-8.
  std::string Text(const std::vector<int32_t>& tokens) const;
};

// Any thread may use it.
class Client {
 public:
  Client();
  const std::shared_ptr<TokenSink>& sink() const { return sink_; }

  // All that the stream has brought so far.
  struct Received {
    std::vector<TokenOutput> tokens;
    std::string text;
    std::optional<Completion> completion;

    std::vector<int32_t> ids() const;
  };
  const Received& Poll();
  // Waits for the completion.
  const Received& Wait();
  // Waits for this many tokens, or the completion.
  const Received& WaitForTokens(size_t count);

 private:
  struct Bell {
    absl::Mutex mutex;
    bool rung = false;
  };
  void AwaitNews();

  const std::shared_ptr<Bell> bell_ = std::make_shared<Bell>();
  const std::shared_ptr<TokenSink> sink_;
  Received received_;
};

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_RUNTIME_ENGINE_TINY_RUNTIME_H_
