// Sequence: one running request, from admission to completion.
#ifndef WHIT_RUNTIME_ENGINE_SEQUENCE_H_
#define WHIT_RUNTIME_ENGINE_SEQUENCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "controller/capped_policy.h"
#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/sampler.h"
#include "runtime/engine/scheduler.h"
#include "runtime/engine/sequence_price.h"
#include "runtime/model/model.h"
#include "runtime/text/stop_matcher.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

namespace whit {

// Its tokens, the pages of their keys and values, and what turns rows of logits into text for the
// client. The pages are free once it is destroyed.
//
// Threads: the engine's, but for ReadLogits.
class Sequence {
 public:
  // All references outlive it. `kv` holds the first tokens of the prompt already, or none.
  Sequence(QueuedRequest queued, const ModelConfig& model, PageTable kv, const Tokenizer& tokenizer,
           const PriceCurve& prices, bool server_has_target, absl::Time started);
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  uint64_t number() const { return queued_.number; }
  const Request& request() const { return queued_.request; }
  const std::shared_ptr<TokenSink>& sink() const { return queued_.sink; }
  size_t reservation_bytes() const { return queued_.reservation_bytes; }
  const KvTerms& terms() const { return queued_.terms; }
  const PageTable& kv() const { return kv_; }
  // For what lowers and moves pages between steps.
  PageTable& mutable_kv() { return kv_; }
  // The first of the tokens that the KV cache holds, as far as another prompt may begin with their
  // pages.
  absl::Span<const int32_t> reusable_tokens() const;
  // After MakeCompletion: gives the pages away.
  PageTable TakeKv() { return std::move(kv_); }

  SequencePrice& price() { return price_; }

  // What is left to run.
  SequenceView view() const;
  // No token that is decided from now on exceeds this rung.
  void set_rung_cap(Rung cap) { policy_.set_cap(cap); }
  bool capped() const { return policy_.cap() < terms().dearest; }
  // The first `num_tokens` of the tokens that the KV cache does not hold yet.
  ForwardSlice NextSlice(int num_tokens, ForwardSlice::Logits logits);

  // What a row of logits says of the token after `position`: chooses that token, or scores it if
  // the request brought it along. Rows of one scored sequence may be read on several threads at
  // once.
  TokenOutput ReadLogits(int position, absl::Span<const float> logits, SamplerScratch& scratch);
  // Takes what was read from the rows of a step. May end the sequence.
  void Append(absl::Span<TokenOutput> outputs, absl::Time now);
  // Hands the sink what has become certain since the last call.
  void Deliver();

  int generated_tokens() const { return static_cast<int>(tokens_.size() - prompt_tokens_); }
  absl::Time last_token_time() const { return last_token_; }

  // No token comes after this. Once only.
  void End(FinishReason reason, absl::Status status);
  bool ended() const { return ended_; }
  bool succeeded() const { return ended_ && status_.ok(); }
  // After End. What the pages hold now goes into it.
  Completion MakeCompletion(absl::Time now) const;

 private:
  bool scores() const { return request().score_tokens > 0; }
  bool EndsGeneration(int32_t token) const;
  void AppendText(std::string_view bytes);
  KvUsage MeasureKv() const;
  std::vector<TokenPrecision> Explain() const;

  QueuedRequest queued_;
  const ModelConfig& model_;
  const Tokenizer& tokenizer_;
  PageTable kv_;
  CappedPolicy policy_;
  SequencePrice price_;
  const int cached_tokens_;  // that kv_ began with
  SequenceSignals signals_;

  std::vector<int32_t> tokens_;  // the prompt, then what was generated
  const size_t prompt_tokens_;
  Sampler sampler_;

  // Text on its way: token bytes, whole characters, no stop string.
  Utf8Stream characters_;
  StopMatcher stop_matcher_;
  bool stop_string_found_ = false;
  std::vector<TokenOutput> undelivered_tokens_;
  std::string undelivered_text_;

  bool ended_ = false;
  FinishReason finish_reason_ = FinishReason::kError;
  absl::Status status_;

  const absl::Time started_;
  absl::Time first_token_ = absl::InfiniteFuture();
  absl::Time last_token_ = absl::InfiniteFuture();
};

// The completion of a request that ended before it ran.
Completion CompletionWithoutRunning(const QueuedRequest& queued, FinishReason reason,
                                    absl::Status status, absl::Time now);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_SEQUENCE_H_
