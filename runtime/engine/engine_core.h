// EngineCore: what the engine thread owns, and the step that moves all of it forward.
#ifndef WHIT_RUNTIME_ENGINE_ENGINE_CORE_H_
#define WHIT_RUNTIME_ENGINE_ENGINE_CORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "controller/price.h"
#include "kvpool/page_pool.h"
#include "kvpool/prefix_index.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/kv_relief.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/retry_estimate.h"
#include "runtime/engine/sampler.h"
#include "runtime/engine/scheduler.h"
#include "runtime/engine/sequence.h"
#include "runtime/engine/token_rate.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

namespace whit {

// The running sequences and the pool their pages lie in.
//
// Threads: one, but for snapshot() and progress().
class EngineCore {
 public:
  // All references outlive it. `queue` lets no more be reserved than is usable of `pool`
  // (PagePool::UsableBytes).
  EngineCore(const EngineOptions& options, Model& model, const Tokenizer& tokenizer,
             std::unique_ptr<PagePool> pool, RequestQueue& queue, EngineObserver observer,
             EngineClock clock = absl::Now);

  // Takes in what is new, runs the model once over all sequences, and hands on what came of it.
  // Once the queue has stopped, ends everything instead. Deadlines up to `now` have passed.
  void Step(absl::Time now);

  EngineSnapshot snapshot() const;
  RunningProgress progress() const;
  const PagePool& pool() const { return *pool_; }

 private:
  // A row of logits, and the sequence and position whose next token it is about.
  struct Row {
    Sequence* sequence = nullptr;
    int position = 0;
    absl::Span<const float> logits{};
  };
  // A request that has ended, pages freed, and not been told yet.
  struct Ended {
    std::shared_ptr<TokenSink> sink;
    Completion completion;
    size_t reservation_bytes = 0;
    bool ran = false;
  };

  void TakeIn(RequestQueue::Intake intake, absl::Time now);
  // A new sequence's table: it begins with the pages of a finished one that began alike, if any.
  PageTable TableFor(const QueuedRequest& queued);
  void KeepPrefix(Sequence& sequence);
  std::vector<PlannedSlice> Plan() const;
  // What the step's tokens pay for their bits.
  void SetPrices();
  // After this the pool has whatever the step may take.
  void MakeRoom(absl::Span<const PlannedSlice> plan);
  std::vector<Row> RunModel(absl::Span<const PlannedSlice> plan);
  void ReadLogits(absl::Span<const Row> rows);
  void Deliver();
  // Frees the pages of what has ended, then says so to the books, then to the clients.
  void RetireEnded();
  void PublishFigures() ABSL_EXCLUSIVE_LOCKS_REQUIRED(snapshot_mutex_);
  void Report(absl::Duration step);

  const EngineOptions options_;
  const StepLimits step_limits_;
  Model& model_;
  const Tokenizer& tokenizer_;
  RequestQueue& queue_;
  const EngineObserver observer_;
  const EngineClock clock_;
  const std::unique_ptr<PagePool> pool_;

  const PriceCurve prices_;
  // Holds the mean over all that follow it at options_.kv_target_bits, if that is given.
  std::optional<PriceController> server_price_;

  PrefixIndex prefixes_;
  KvRelief relief_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival
  std::vector<Ended> ended_;

  // Of the step under way.
  struct Tally {
    int prompt_tokens = 0;
    int generated_tokens = 0;
    DecisionTally::Counts decisions{};
    absl::Duration relief, sampling;
    std::vector<absl::Duration> inter_token_latencies;
  };
  Tally tally_;
  std::vector<SamplerScratch> scratch_;  // one a thread
  std::vector<TokenOutput> outputs_;     // one a row

  // Held while the books and the published figures change together, so that a snapshot never shows
  // more bytes used than reserved.
  mutable absl::Mutex snapshot_mutex_;
  EngineSnapshot published_ ABSL_GUARDED_BY(snapshot_mutex_);
  std::vector<int64_t> tokens_left_ ABSL_GUARDED_BY(snapshot_mutex_);  // of each running sequence
  TokenRate rate_ ABSL_GUARDED_BY(snapshot_mutex_);
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_ENGINE_CORE_H_
