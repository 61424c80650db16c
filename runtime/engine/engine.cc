#include "runtime/engine/engine.h"

#include <pthread.h>

#include <limits>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/engine_core.h"
#include "runtime/engine/kv_reservation.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/retry_estimate.h"

namespace whit {
namespace {

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %d; it must be between %d and %d", name, value, low, high));
}

absl::Status ValidateOptions(const EngineOptions& options) {
  constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max();
  for (const absl::Status& status :
       {CheckRange("max_step_tokens", options.max_step_tokens, 1, Model::kMaxForwardTokens),
        CheckRange("prefill_chunk_tokens", options.prefill_chunk_tokens, 1,
                   options.max_step_tokens),
        // Each running sequence gets at least one token a step.
        CheckRange("max_running_requests", options.max_running_requests, 1,
                   options.max_step_tokens),
        CheckRange("max_waiting_requests", options.max_waiting_requests, 0, kUnbounded),
        CheckRange("max_waiting_prompt_tokens", options.max_waiting_prompt_tokens, 0, kUnbounded),
        CheckRange("max_cached_prefixes", options.max_cached_prefixes, 0, 1 << 20)}) {
    if (!status.ok()) return status;
  }
  if (absl::Status status = CheckRingTokens(options.kv_ring.tokens); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("kv_ring.tokens: ", status.message()));
  }
  const double target = options.kv_target_bits;
  if (target != 0 && !(target >= kMinTargetBits && target <= kMaxTargetBits)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("kv_target_bits is %g; it must be between %g and %g", target,
                        kMinTargetBits, kMaxTargetBits));
  }
  return MakePrecisionPolicy(options.kv_policy, options.policy_file).status();
}

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

struct Engine::Impl {
  Impl(const EngineOptions& options, const AdmissionLimits& limits, Model& model,
       const Tokenizer& tokenizer, std::unique_ptr<PagePool> pool, EngineObserver observer)
      : options(options),
        limits(limits),
        model(model.config()),
        queue(limits),
        core(options, model, tokenizer, std::move(pool), queue, std::move(observer)),
        thread([this] { Run(); }) {}

  ~Impl() {
    queue.Stop();
    thread.join();
  }

  void Run() {
    pthread_setname_np(pthread_self(), "whit-engine");
    while (queue.AwaitWork()) core.Step(absl::Now());
    core.Step(absl::Now());  // the queue has stopped: ends what is left
  }

  // A rejection for want of room, with the time after which there may be some.
  absl::Status WithRetryAfter(absl::Status status, const AdmissionDemand& demand) const {
    if (!absl::IsResourceExhausted(status)) return status;
    const int64_t starts = StartsUntilRoom(limits, queue.state(), demand);
    SetRetryAfter(EstimateRetryAfter(starts, core.progress()), &status);
    return status;
  }

  const EngineOptions options;
  const AdmissionLimits limits;
  const ModelConfig& model;
  RequestQueue queue;
  EngineCore core;
  std::thread thread;  // last: it uses all of the above
};

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options, Model& model,
                                                       const Tokenizer& tokenizer,
                                                       EngineObserver observer) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<PagePool>> pool = PagePool::Create(
      {.capacity_bytes = options.kv_cache_bytes, .head_dim = model.config().head_dim});
  if (!pool.ok()) return pool.status();
  const AdmissionLimits limits = {
      .reservable_bytes = PagePool::UsableBytes((*pool)->stats().capacity_bytes),
      .max_running_requests = options.max_running_requests,
      .max_waiting_requests = options.max_waiting_requests,
      .max_waiting_prompt_tokens = options.max_waiting_prompt_tokens};
  const KvTerms terms = TermsOf(options.kv_policy, options.kv_floor, options.kv_ring);
  const size_t least = ReservationBytes(terms, model.config(), 1, 1);
  if (limits.reservable_bytes < least) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the KV cache has %d bytes, %d of them to move pages in; one token of this model needs "
        "pages of %d",
        options.kv_cache_bytes, options.kv_cache_bytes - limits.reservable_bytes, least));
  }
  std::unique_ptr<Engine> engine(new Engine());
  engine->impl_ = std::make_unique<Impl>(options, limits, model, tokenizer, *std::move(pool),
                                         std::move(observer));
  return engine;
}

Engine::Engine() = default;
Engine::~Engine() = default;

absl::StatusOr<Engine::Ticket> Engine::Admit() {
  if (absl::Status status = impl_->queue.TakeTicket(); !status.ok()) {
    return impl_->WithRetryAfter(std::move(status), {});
  }
  return Ticket(impl_.get());
}

absl::StatusOr<uint64_t> Engine::Submit(Ticket ticket, Request request,
                                        std::shared_ptr<TokenSink> sink) {
  const EngineOptions& options = impl_->options;
  if (absl::Status status = ValidateRequest(request, impl_->model, options.kv_floor);
      !status.ok()) {
    return status;
  }
  absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> policy =
      MakePrecisionPolicy(request.kv_policy, options.policy_file);
  if (!policy.ok()) return policy.status();
  if (!request.sampling.seed.has_value()) request.sampling.seed = RandomSeed();
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const int64_t tokens = prompt_tokens + (request.score_tokens > 0 ? 0 : request.max_new_tokens);
  QueuedRequest queued = {
      .terms =
          TermsOf(request.kv_policy, request.kv_floor.value_or(options.kv_floor), options.kv_ring),
      .submitted = absl::Now()};
  queued.reservation_bytes = ReservationBytes(queued.terms, impl_->model, prompt_tokens, tokens);
  queued.request = std::move(request);
  queued.policy = *std::move(policy);
  queued.sink = std::move(sink);
  const AdmissionDemand demand = DemandOf(queued);
  absl::StatusOr<uint64_t> number = impl_->queue.Submit(std::move(queued), impl_->core.progress());
  if (!number.ok()) return impl_->WithRetryAfter(number.status(), demand);
  ticket.engine_ = nullptr;  // the request has its place now
  return number;
}

void Engine::Cancel(uint64_t request_number) { impl_->queue.Cancel(request_number); }
void Engine::StartDraining() { impl_->queue.StartDraining(); }
bool Engine::WaitUntilIdle(absl::Time deadline) { return impl_->queue.WaitUntilIdle(deadline); }
EngineSnapshot Engine::snapshot() const { return impl_->core.snapshot(); }
const EngineOptions& Engine::options() const { return impl_->options; }

Engine::Ticket::Ticket(Ticket&& other) noexcept : engine_(std::exchange(other.engine_, nullptr)) {}

Engine::Ticket& Engine::Ticket::operator=(Ticket&& other) noexcept {
  std::swap(engine_, other.engine_);
  return *this;
}

Engine::Ticket::~Ticket() {
  if (engine_ != nullptr) engine_->queue.ReturnTicket();
}

}  // namespace whit
