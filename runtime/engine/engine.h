// runtime/engine: from a request to its tokens. A request is checked (request), admitted or queued
// (admission, request_queue), and runs as a Sequence, whose tokens the Sampler chooses and whose
// text its TokenSink carries to the client. EngineCore::Step moves all sequences forward at once,
// by the scheduler's plan. This folder computes no logits (runtime/model), decides no precision
// (controller), lays out no pages (kvpool) and knows no protocol (server).
//
// Engine, in this file, is the face of it all: it owns the one thread that takes the steps.
#ifndef WHIT_RUNTIME_ENGINE_ENGINE_H_
#define WHIT_RUNTIME_ENGINE_ENGINE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "controller/decision_tally.h"
#include "controller/policy_file.h"
#include "controller/precision_policy.h"
#include "kvpool/page_pool.h"
#include "kvpool/rung.h"
#include "runtime/engine/kv_relief.h"
#include "runtime/engine/request.h"
#include "runtime/engine/token_sink.h"
#include "runtime/model/forward_times.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

namespace whit {

struct EngineOptions {
  size_t kv_cache_bytes = size_t{512} << 20;
  int max_running_requests = 64;  // at most max_step_tokens
  int max_waiting_requests = 256;
  int64_t max_waiting_prompt_tokens = 1 << 20;
  // Tokens of one step: decodes first, prompts take what is left. At most Model::kMaxForwardTokens.
  int max_step_tokens = 512;
  // Prompt tokens of a step in which streams decode: what a prompt adds to their inter-token
  // latency.
  int prefill_chunk_tokens = 64;
  // Finished requests whose pages are kept while nothing else needs them, so that a prompt that
  // begins like one of theirs need not be computed again. 0: none. They give way to whatever an
  // admitted request needs; a bound is needed only for what is kept outside the pool, about a
  // hundredth of a prefix's pages.
  int max_cached_prefixes = 256;
  // What headroom is counted for; each request brings its own.
  PrecisionPolicySpec kv_policy{};
  // How requests of quantizing policies keep their newest and first tokens.
  RecentRing kv_ring = kDefaultRing;
  // True bits per element that all running requests with the policy `adaptive` are to hold in the
  // mean, but for those with a target of their own; 0: each holds kDefaultPackedBits.
  double kv_target_bits = 0;
  // The lowest rung that pressure squeezes requests to whose policy gives several, unless they ask
  // for a higher one. At K4V2 a pool that is full of promises still keeps 3.25 bits an element, at
  // which `adaptive` is as close to exact as all tokens at K4V4 are.
  Rung kv_floor = Rung::kK4V2;
  // What was learned of the model; null: nothing. Outlives the engine.
  const PolicyFile* policy_file = nullptr;
};

// One consistent view: of requests as they stand, of pages as the last step left them.
struct EngineSnapshot {
  PagePoolStats pool;
  // In footprints (kv_reservation.h), of which there are this many. More may be used than are
  // reserved.
  size_t reserved_bytes = 0;
  size_t reservable_bytes = 0;
  // Of all tokens in the pool, those of running requests and those of cached prefixes; tokens that
  // several share count once. So do their pages.
  size_t fp16_equivalent_bytes = 0;
  double mean_bits = 0;  // true bits per element; 0 if there are no tokens
  // Places for tokens in the pages that requests hold, averaged over layers and KV heads.
  std::array<double, kNumRungs> tokens_by_rung{};
  // Decisions by rung, about one token in one (layer, KV head) each.
  DecisionTally::Counts decisions_total{};
  // Pages lowered under pressure, [from][to].
  KvRelief::Demotions demotions_total{};
  // Pressure lets nothing be kept above it, but what has a higher floor.
  Rung ceiling = Rung::kFp16;
  double price = 0;  // mean over the running adaptive requests; 0 if there are none
  // Tokens of one more request that could be admitted now; of these, how many the free bytes hold
  // at the present mean.
  int64_t headroom_tokens_floor = 0;
  int64_t headroom_tokens_current = 0;
  int64_t capacity_tokens_floor = 0;  // what headroom_tokens_floor is while nothing is admitted
  int running = 0;
  int waiting = 0;
  int64_t waiting_prompt_tokens = 0;
  // What a request that came now would wait before it runs, if what runs and what waits goes on to
  // its max_new_tokens at the present pace; kDefaultRetryAfter where no pace is known.
  absl::Duration estimated_wait;
  double generated_tokens_per_second = 0;  // over the last seconds
  uint64_t prompt_tokens_total = 0;
  uint64_t generated_tokens_total = 0;
  // Prompt tokens that were looked up among cached prefixes, and that were found.
  uint64_t prefix_query_tokens_total = 0;
  uint64_t prefix_hit_tokens_total = 0;
  int cached_prefixes = 0;
  bool draining = false;
};

// What a step did; for metrics.
struct StepReport {
  absl::Duration duration;
  // Of it: in the model, with making room in the pool before, and with sampling behind.
  ForwardTimes forward;
  absl::Duration relief;
  absl::Duration sampling;
  int prompt_tokens = 0;
  int generated_tokens = 0;
  // Since each running stream's previous token, for the tokens of this step.
  absl::Span<const absl::Duration> inter_token_latencies;
};

// Called on the engine thread; quick, and without locks that a scrape holds for long.
struct EngineObserver {
  std::function<void(const StepReport&)> on_step;
  std::function<void(const Completion&)> on_completion;
  // What the model is about to run.
  std::function<void(absl::Span<const ForwardSlice>)> on_forward{};
};

// What time it is.
using EngineClock = std::function<absl::Time()>;

// Threads: all public methods may be called from any thread.
class Engine {
 public:
  // `model`, `tokenizer` and the model's thread pool outlive the engine. INVALID_ARGUMENT if the
  // pool cannot hold even one token's pages or an option is out of range; FAILED_PRECONDITION if
  // the policy needs what the policy file lacks.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options, Model& model,
                                                        const Tokenizer& tokenizer,
                                                        EngineObserver observer = {});
  // Cancels what is left, then joins the thread.
  ~Engine();

  // A place in the queue, taken before any tokenizing is spent on a request; given back when it
  // dies unused. RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE when draining.
  // Here and in Submit, RESOURCE_EXHAUSTED says when to come back (retry_estimate.h).
  class Ticket;
  absl::StatusOr<Ticket> Admit();

  // Queues the request. On error the sink is never called; otherwise it gets exactly one
  // completion. INVALID_ARGUMENT (a value out of range, or it can never fit: names the limit),
  // FAILED_PRECONDITION (its policy needs what the policy file lacks, or its floor is below the
  // operator's), RESOURCE_EXHAUSTED (too many prompt tokens are waiting, or its deadline would come
  // first). Returns a number for Cancel.
  absl::StatusOr<uint64_t> Submit(Ticket ticket, Request request, std::shared_ptr<TokenSink> sink);

  // Asks that a request end; its completion follows, its pages free by then. Unknown numbers are
  // ignored: it may have ended already.
  void Cancel(uint64_t request_number);

  // Refuses new requests from now on.
  void StartDraining();
  // Waits until nothing runs or waits; false if `deadline` came first.
  bool WaitUntilIdle(absl::Time deadline);

  EngineSnapshot snapshot() const;
  const EngineOptions& options() const;

 private:
  Engine();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A queue place. Move-only; releases itself.
class Engine::Ticket {
 public:
  Ticket(Ticket&& other) noexcept;
  Ticket& operator=(Ticket&& other) noexcept;
  ~Ticket();

 private:
  friend class Engine;
  explicit Ticket(Impl* engine) : engine_(engine) {}
  Impl* engine_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_ENGINE_H_
