#include "runtime/engine/stepped_engine.h"

#include <limits>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/engine/kv_reservation.h"
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

absl::StatusOr<std::unique_ptr<SteppedEngine>> SteppedEngine::Create(const EngineOptions& options,
                                                                     Model& model,
                                                                     const Tokenizer& tokenizer,
                                                                     EngineObserver observer,
                                                                     EngineClock clock) {
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
  return std::unique_ptr<SteppedEngine>(new SteppedEngine(
      options, limits, model, tokenizer, *std::move(pool), std::move(observer), std::move(clock)));
}

SteppedEngine::SteppedEngine(const EngineOptions& options, const AdmissionLimits& limits,
                             Model& model, const Tokenizer& tokenizer,
                             std::unique_ptr<PagePool> pool, EngineObserver observer,
                             EngineClock clock)
    : options_(options),
      limits_(limits),
      model_(model.config()),
      clock_(clock),
      queue_(limits),
      core_(options, model, tokenizer, std::move(pool), queue_, std::move(observer),
            std::move(clock)) {}

absl::Status SteppedEngine::TakeTicket() { return WithRetryAfter(queue_.TakeTicket(), {}); }

absl::StatusOr<uint64_t> SteppedEngine::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  if (absl::Status status = ValidateRequest(request, model_, options_.kv_floor); !status.ok()) {
    return status;
  }
  absl::StatusOr<std::unique_ptr<const PrecisionPolicy>> policy =
      MakePrecisionPolicy(request.kv_policy, options_.policy_file);
  if (!policy.ok()) return policy.status();
  if (!request.sampling.seed.has_value()) request.sampling.seed = RandomSeed();
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const int64_t tokens = prompt_tokens + (request.score_tokens > 0 ? 0 : request.max_new_tokens);
  QueuedRequest queued = {
      .terms = TermsOf(request.kv_policy, request.kv_floor.value_or(options_.kv_floor),
                       options_.kv_ring),
      .submitted = clock_()};
  queued.reservation_bytes = ReservationBytes(queued.terms, model_, prompt_tokens, tokens);
  queued.request = std::move(request);
  queued.policy = *std::move(policy);
  queued.sink = std::move(sink);
  const AdmissionDemand demand = DemandOf(queued);
  absl::StatusOr<uint64_t> number = queue_.Submit(std::move(queued), core_.progress());
  if (!number.ok()) return WithRetryAfter(number.status(), demand);
  return number;
}

absl::Status SteppedEngine::WithRetryAfter(absl::Status status,
                                           const AdmissionDemand& demand) const {
  if (!absl::IsResourceExhausted(status)) return status;
  const int64_t starts = StartsUntilRoom(limits_, queue_.state(), demand);
  SetRetryAfter(EstimateRetryAfter(starts, core_.progress()), &status);
  return status;
}

}  // namespace whit
