#include "runtime/engine/token_sink.h"

#include <iterator>
#include <utility>

namespace whit {

TokenSink::TokenSink(std::function<void()> on_ready) : on_ready_(std::move(on_ready)) {}

void TokenSink::Put(std::vector<TokenOutput> tokens, std::string text) {
  if (tokens.empty() && text.empty()) return;
  bool was_empty;
  {
    absl::MutexLock lock(&mutex_);
    was_empty = pending_.empty();
    pending_.tokens.insert(pending_.tokens.end(), std::make_move_iterator(tokens.begin()),
                           std::make_move_iterator(tokens.end()));
    pending_.text += text;
  }
  if (was_empty) on_ready_();
}

void TokenSink::Finish(Completion completion) {
  bool was_empty;
  {
    absl::MutexLock lock(&mutex_);
    was_empty = pending_.empty();
    pending_.completion = std::move(completion);
  }
  if (was_empty) on_ready_();
}

TokenSink::Delivery TokenSink::Take() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(pending_, Delivery());
}

}  // namespace whit
