#include "runtime/engine/engine_core.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_format.h"
#include "runtime/engine/admission.h"

namespace whit {
namespace {

// Rows of logits of one step that belong to scored prompts: 64 rows of a vocabulary of 256k take 64
// MiB.
constexpr int kMaxScoredRows = 64;

absl::Status Cancelled() { return absl::CancelledError("the request was cancelled"); }

int NumRows(const PlannedSlice& slice) {
  switch (slice.logits) {
    case ForwardSlice::Logits::kNone:
      return 0;
    case ForwardSlice::Logits::kLast:
      return 1;
    case ForwardSlice::Logits::kAll:
      break;
  }
  return slice.num_tokens;
}

// What must be the same for pages to be shared; the floor too, so that all who share a page may
// have it lowered as far.
std::string PrecisionOf(const Request& request, const KvTerms& terms) {
  return absl::StrFormat("%s, %g, %s", request.kv_policy.ToString(), request.kv_target_bits,
                         std::string(RungName(terms.floor)));
}

}  // namespace

EngineCore::EngineCore(const EngineOptions& options, Model& model, const Tokenizer& tokenizer,
                       std::unique_ptr<PagePool> pool, RequestQueue& queue, EngineObserver observer,
                       EngineClock clock)
    : options_(options),
      step_limits_({.max_step_tokens = options.max_step_tokens,
                    .prefill_chunk_tokens = options.prefill_chunk_tokens,
                    .max_scored_rows = kMaxScoredRows}),
      model_(model),
      tokenizer_(tokenizer),
      queue_(queue),
      observer_(std::move(observer)),
      clock_(std::move(clock)),
      pool_(std::move(pool)),
      prices_(PricesOf(options.policy_file, model.config().head_dim)),
      prefixes_(options.max_cached_prefixes),
      relief_(*pool_, model.thread_pool(), model.config().num_layers, model.config().num_kv_heads),
      scratch_(model.thread_pool().num_threads()) {
  if (options.kv_target_bits > 0) server_price_.emplace(prices_, options.kv_target_bits);
  absl::MutexLock lock(&snapshot_mutex_);
  published_.reservable_bytes = PagePool::UsableBytes(pool_->stats().capacity_bytes);
  published_.capacity_tokens_floor =
      TokensThatFit(TermsOf(options.kv_policy, options.kv_floor, options.kv_ring), model.config(),
                    published_.reservable_bytes);
  PublishFigures();
}

void EngineCore::Step(absl::Time now) {
  tally_ = {};
  TakeIn(queue_.Take(now), now);
  RetireEnded();

  const std::vector<PlannedSlice> plan = Plan();
  if (!plan.empty()) {
    SetPrices();
    MakeRoom(plan);
    ReadLogits(RunModel(plan));
    Deliver();
    Report(clock_() - now);
  }
  RetireEnded();
  assert(pool_->CheckInvariants().ok());
}

void EngineCore::TakeIn(RequestQueue::Intake intake, absl::Time now) {
  for (QueuedRequest& queued : intake.started) {
    PageTable table = TableFor(queued);
    running_.push_back(std::make_unique<Sequence>(std::move(queued), model_.config(),
                                                  std::move(table), tokenizer_, prices_,
                                                  server_price_.has_value(), now));
  }
  for (const QueuedRequest& queued : intake.cancelled) {
    ended_.push_back({queued.sink, CompletionWithoutRunning(queued, FinishReason::kCancelled,
                                                            Cancelled(), now)});
  }
  for (const QueuedRequest& queued : intake.expired) {
    ended_.push_back(
        {queued.sink, CompletionWithoutRunning(
                          queued, FinishReason::kDeadline,
                          absl::DeadlineExceededError("the deadline passed in the queue"), now)});
  }
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (intake.stopped || intake.cancellations.contains(sequence->number())) {
      sequence->End(FinishReason::kCancelled, Cancelled());
    } else if (sequence->request().deadline <= now) {
      sequence->End(FinishReason::kDeadline,
                    absl::DeadlineExceededError(absl::StrFormat(
                        "the deadline passed after %d tokens", sequence->generated_tokens())));
    }
  }
}

PageTable EngineCore::TableFor(const QueuedRequest& queued) {
  const Request& request = queued.request;
  PageTable table = model_.NewPageTable(*pool_, queued.terms.ring);
  // A scored prompt needs rows of logits, and every prompt its last token's. Decisions on cached
  // tokens are not kept, so whoever wants them explained has them taken anew.
  if (options_.max_cached_prefixes == 0 || request.score_tokens > 0 || request.explain) {
    return table;
  }
  const auto reusable = absl::MakeConstSpan(request.prompt).first(request.prompt.size() - 1);
  const PrefixIndex::Match match = prefixes_.Find(PrecisionOf(request, queued.terms), reusable);
  if (match.tokens > 0) table = match.table->Fork(match.tokens);
  absl::MutexLock lock(&snapshot_mutex_);
  published_.prefix_query_tokens_total += reusable.size();
  published_.prefix_hit_tokens_total += table.num_tokens();
  return table;
}

void EngineCore::KeepPrefix(Sequence& sequence) {
  if (options_.max_cached_prefixes == 0 || !sequence.succeeded()) return;
  const absl::Span<const int32_t> tokens = sequence.reusable_tokens();
  prefixes_.Insert(PrecisionOf(sequence.request(), sequence.terms()), tokens, sequence.TakeKv());
}

std::vector<PlannedSlice> EngineCore::Plan() const {
  std::vector<SequenceView> views;
  views.reserve(running_.size());
  for (const std::unique_ptr<Sequence>& sequence : running_) views.push_back(sequence->view());
  return PlanStep(step_limits_, views);
}

void EngineCore::SetPrices() {
  const PagePoolStats pool = pool_->stats();
  const size_t reserved = queue_.state().reserved_bytes;
  // Not what is reclaimable: cached prefixes go before anything gets dearer.
  const double pressure =
      PricePressure({.capacity_bytes = PagePool::UsableBytes(pool.capacity_bytes),
                     .used_bytes = pool.used_bytes,
                     .reserved_bytes = reserved});
  PriceHoldings held;
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    SequencePrice& price = sequence->price();
    if (!price.pays()) continue;
    if (!price.follows_server()) {
      price.Update(pressure);
      continue;
    }
    held += price.TakeHoldings();
  }
  if (!server_price_.has_value()) return;
  server_price_->Update(MeasureTrueBits(options_.kv_target_bits, held, pressure, model_.config()));
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    if (sequence->price().follows_server()) sequence->price().set_price(server_price_->price());
  }
}

void EngineCore::MakeRoom(absl::Span<const PlannedSlice> plan) {
  const absl::Time start = clock_();
  std::vector<KvHolder> holders;
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    holders.push_back({.table = &sequence->mutable_kv(), .terms = &sequence->terms()});
  }
  for (const PlannedSlice& planned : plan) {
    holders[planned.sequence].step_tokens = planned.num_tokens;
  }
  const auto evict = [this] { return prefixes_.EvictOldest(); };
  const auto tables = [this] { return prefixes_.tables(); };
  const Rung ceiling = relief_.MakeRoom(holders, {.evict = evict, .tables = tables});
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    sequence->set_rung_cap(std::max(ceiling, sequence->terms().floor));
  }
  tally_.relief = clock_() - start;
}

std::vector<EngineCore::Row> EngineCore::RunModel(absl::Span<const PlannedSlice> plan) {
  std::vector<ForwardSlice> slices;
  for (const PlannedSlice& planned : plan) {
    Sequence& sequence = *running_[planned.sequence];
    slices.push_back(sequence.NextSlice(planned.num_tokens, planned.logits));
    if (sequence.generated_tokens() == 0) tally_.prompt_tokens += planned.num_tokens;
  }
  if (observer_.on_forward) observer_.on_forward(slices);
  absl::Span<const float> logits = model_.Forward(slices);
  for (const PlannedSlice& planned : plan) {
    Sequence& sequence = *running_[planned.sequence];
    AddCounts(sequence.price().EndStep(sequence.kv()), tally_.decisions);
    // What a ceiling cut short says nothing of what the price was worth.
    if (sequence.capped()) sequence.price().TakeHoldings();
  }

  const size_t vocab_size = model_.config().vocab_size;
  std::vector<Row> rows;
  for (size_t i = 0; i < plan.size(); ++i) {
    Sequence& sequence = *running_[plan[i].sequence];
    const int num_rows = NumRows(plan[i]);
    const absl::Span<const float> own = logits.first(num_rows * vocab_size);
    logits.remove_prefix(own.size());
    if (const absl::Status& status = sequence.kv().status(); !status.ok()) {
      sequence.End(
          FinishReason::kError,
          absl::InternalError(absl::StrFormat(
              "defect in request %d: its reservation of %d bytes did not hold: %s",
              sequence.number(), sequence.reservation_bytes(), std::string(status.message()))));
      continue;
    }
    const int end = slices[i].first_position + plan[i].num_tokens;
    for (int row = 0; row < num_rows; ++row) {
      rows.push_back({.sequence = &sequence,
                      .position = end - num_rows + row,
                      .logits = own.subspan(row * vocab_size, vocab_size)});
    }
  }
  return rows;
}

void EngineCore::ReadLogits(absl::Span<const Row> rows) {
  const absl::Time start = clock_();
  outputs_.resize(rows.size());
  model_.thread_pool().ParallelFor(rows.size(), 1, [&](size_t begin, size_t end, int thread) {
    for (size_t i = begin; i < end; ++i) {
      const Row& row = rows[i];
      outputs_[i] = row.sequence->ReadLogits(row.position, row.logits, scratch_[thread]);
    }
  });

  const absl::Time now = clock_();
  for (size_t begin = 0, end = 0; begin < rows.size(); begin = end) {
    Sequence& sequence = *rows[begin].sequence;
    while (end < rows.size() && rows[end].sequence == &sequence) ++end;
    const int generated_before = sequence.generated_tokens();
    if (generated_before > 0) {
      tally_.inter_token_latencies.push_back(now - sequence.last_token_time());
    }
    sequence.Append(absl::MakeSpan(outputs_).subspan(begin, end - begin), now);
    tally_.generated_tokens += sequence.generated_tokens() - generated_before;
  }
  tally_.sampling = clock_() - start;
}

void EngineCore::Deliver() {
  for (const std::unique_ptr<Sequence>& sequence : running_) sequence->Deliver();
}

void EngineCore::Report(absl::Duration step) {
  {
    absl::MutexLock lock(&snapshot_mutex_);
    published_.prompt_tokens_total += tally_.prompt_tokens;
    published_.generated_tokens_total += tally_.generated_tokens;
    AddCounts(tally_.decisions, published_.decisions_total);
    rate_.Add(tally_.generated_tokens, clock_());
  }
  if (!observer_.on_step) return;
  observer_.on_step({.duration = step,
                     .forward = model_.times(),
                     .relief = tally_.relief,
                     .sampling = tally_.sampling,
                     .prompt_tokens = tally_.prompt_tokens,
                     .generated_tokens = tally_.generated_tokens,
                     .inter_token_latencies = tally_.inter_token_latencies});
}

void EngineCore::RetireEnded() {
  const absl::Time now = clock_();
  for (std::unique_ptr<Sequence>& sequence : running_) {
    if (!sequence->ended()) continue;
    sequence->Deliver();
    ended_.push_back({.sink = sequence->sink(),
                      .completion = sequence->MakeCompletion(now),
                      .reservation_bytes = sequence->reservation_bytes(),
                      .ran = true});
    KeepPrefix(*sequence);
    sequence.reset();
  }
  std::erase(running_, nullptr);
  {
    absl::MutexLock lock(&snapshot_mutex_);
    PublishFigures();
    for (const Ended& ended : ended_) {
      if (ended.ran) queue_.Release(ended.reservation_bytes);
    }
  }
  for (Ended& ended : ended_) {
    if (observer_.on_completion) observer_.on_completion(ended.completion);
    ended.sink->Finish(std::move(ended.completion));
    queue_.Completed();
  }
  ended_.clear();
}

void EngineCore::PublishFigures() {
  const PagePoolStats pool = pool_->stats();
  // Blocks may be shared; what is not in a block yet is a sequence's own.
  int64_t tokens = pool.settled_blocks * PageTable::kForkTokens;
  tokens_left_.clear();
  int paying = 0;
  double prices = 0;
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    tokens += sequence->kv().num_tokens() - sequence->kv().forkable_tokens();
    tokens_left_.push_back(sequence->request().max_new_tokens - sequence->generated_tokens());
    paying += sequence->price().pays() ? 1 : 0;
    prices += sequence->price().price();
  }
  published_.price = paying == 0 ? 0 : prices / paying;
  const ModelConfig& model = model_.config();
  const double lists = model.num_layers * model.num_kv_heads;
  size_t pages = pool.reclaimable_pages;
  for (int i = 0; i < kNumRungs; ++i) {
    published_.tokens_by_rung[i] =
        static_cast<double>(pool.used_pages_by_rung[i]) * kTileTokens / lists;
    pages += pool.used_pages_by_rung[i];
  }
  const size_t bytes = pool.used_bytes + pool.reclaimable_bytes + pages * sizeof(PageEntry);
  const size_t elements = tokens * model.kv_elements_per_token();
  published_.pool = pool;
  published_.fp16_equivalent_bytes = elements * sizeof(uint16_t);
  published_.mean_bits =
      elements == 0 ? 0 : 8 * static_cast<double>(bytes) / static_cast<double>(elements);
  published_.demotions_total = relief_.demotions();
  published_.ceiling = running_.empty() ? Rung::kFp16 : relief_.state().ceiling;
  published_.cached_prefixes = static_cast<int>(prefixes_.num_tables());
}

RunningProgress EngineCore::progress() const {
  absl::MutexLock lock(&snapshot_mutex_);
  return {.tokens_left = tokens_left_, .tokens_per_second = rate_.PerSecond(clock_())};
}

EngineSnapshot EngineCore::snapshot() const {
  absl::MutexLock lock(&snapshot_mutex_);
  EngineSnapshot snapshot = published_;
  const AdmissionState state = queue_.state();
  snapshot.reserved_bytes = state.reserved_bytes;
  snapshot.running = state.running;
  snapshot.waiting = state.waiting;
  snapshot.waiting_prompt_tokens = state.waiting_prompt_tokens;
  snapshot.draining = state.draining;
  const ModelConfig& model = model_.config();
  const size_t usable = snapshot.reservable_bytes;
  const KvTerms terms = TermsOf(options_.kv_policy, options_.kv_floor, options_.kv_ring);
  snapshot.headroom_tokens_floor =
      TokensThatFit(terms, model, usable - std::min(usable, state.reserved_bytes));
  snapshot.headroom_tokens_current = snapshot.headroom_tokens_floor;
  if (snapshot.mean_bits > 0) {
    const double token_bytes =
        snapshot.mean_bits / 8 * static_cast<double>(model.kv_elements_per_token());
    const size_t free = usable - std::min(usable, snapshot.pool.used_bytes);
    snapshot.headroom_tokens_current =
        std::min(snapshot.headroom_tokens_floor,
                 static_cast<int64_t>(static_cast<double>(free) / token_bytes));
  }
  snapshot.generated_tokens_per_second = rate_.PerSecond(clock_());
  const bool has_room = state.waiting == 0 && state.running < options_.max_running_requests &&
                        snapshot.headroom_tokens_floor > 0;
  if (!has_room) {
    const absl::Duration wait = EstimateWait(
        state.waiting + 1,
        {.tokens_left = tokens_left_, .tokens_per_second = snapshot.generated_tokens_per_second});
    snapshot.estimated_wait = wait > absl::ZeroDuration() ? wait : kDefaultRetryAfter;
  }
  return snapshot;
}

}  // namespace whit
