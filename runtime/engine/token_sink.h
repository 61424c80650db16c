// TokenSink: the mailbox between the engine thread and one client's stream.
#ifndef WHIT_RUNTIME_ENGINE_TOKEN_SINK_H_
#define WHIT_RUNTIME_ENGINE_TOKEN_SINK_H_

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "runtime/engine/request.h"

namespace whit {

// Tokens for a slow client are coalesced, so the engine never blocks on one; what waits here is
// bounded by the request's own max_new_tokens.
//
// Threads: Put and Finish belong to the engine; Take to the consumer; `on_ready` is called without
// locks, on the engine thread, when the mailbox turns from empty to not empty. It must be quick.
class TokenSink {
 public:
  explicit TokenSink(std::function<void()> on_ready);

  void Put(std::vector<TokenOutput> tokens, std::string text);
  void Finish(Completion completion);

  struct Delivery {
    std::vector<TokenOutput> tokens;
    std::string text;
    std::optional<Completion> completion;  // with the last delivery
    bool empty() const { return tokens.empty() && text.empty() && !completion; }
  };
  // All that has come since the last call; empty if nothing has.
  Delivery Take();

 private:
  const std::function<void()> on_ready_;
  absl::Mutex mutex_;
  Delivery pending_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_TOKEN_SINK_H_
