#include "server/response_conversion.h"

#include "absl/time/time.h"
#include "runtime/text/utf8.h"
#include "server/version.h"

namespace whit {

std::string ToUtf8(std::string_view bytes) {
  Utf8Stream stream;
  std::string text = stream.Push(bytes);
  return text + stream.Flush();
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_ERROR;
}

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

v1::Usage ToUsage(const Completion& completion) {
  v1::Usage usage;
  usage.set_prompt_tokens(completion.prompt_tokens);
  usage.set_cached_tokens(completion.cached_tokens);
  usage.set_completion_tokens(completion.completion_tokens);
  return usage;
}

v1::KvCacheUsage ToKvCacheUsage(const KvUsage& usage, const PrecisionPolicySpec& policy) {
  v1::KvCacheUsage proto;
  proto.set_true_bytes(usage.true_bytes);
  proto.set_fp16_equivalent_bytes(usage.fp16_equivalent_bytes);
  proto.set_mean_bits(usage.mean_bits);
  for (int i = 0; i < kNumRungs; ++i) {
    if (usage.bytes_by_rung[i] == 0) continue;
    v1::RungUsage* rung = proto.add_rungs();
    rung->set_rung(std::string(RungName(static_cast<Rung>(i))));
    rung->set_tokens(usage.tokens_by_rung[i]);
    rung->set_bytes(usage.bytes_by_rung[i]);
  }
  proto.set_policy(policy.ToString());
  return proto;
}

void AddExplanation(const Completion& completion, const Tokenizer& tokenizer,
                    v1::KvCacheUsage& usage) {
  for (const TokenPrecision& token : completion.precision) {
    v1::TokenPrecision* proto = usage.add_tokens();
    proto->set_token_id(token.id);
    proto->set_token(std::string(tokenizer.TokenBytes(token.id)));
    proto->set_bits(token.bits);
  }
}

v1::Timings ToTimings(const Completion& completion) {
  v1::Timings timings;
  timings.set_queue_seconds(absl::ToDoubleSeconds(completion.queue_time));
  timings.set_prefill_seconds(absl::ToDoubleSeconds(completion.prefill_time));
  timings.set_decode_seconds(absl::ToDoubleSeconds(completion.decode_time));
  return timings;
}

template <class Proto>
void AddOutput(const TokenSink::Delivery& delivery, bool with_logprobs, const Tokenizer& tokenizer,
               Proto& response) {
  response.mutable_text()->append(delivery.text);
  for (const TokenOutput& token : delivery.tokens) {
    response.add_token_ids(token.id);
    if (!with_logprobs) continue;
    v1::TokenLogprobs* logprobs = response.add_logprobs();
    logprobs->set_logprob(token.logprob);
    for (const TokenAlternative& alternative : token.top) {
      v1::TokenLogprob* top = logprobs->add_top();
      top->set_token_id(alternative.id);
      top->set_token(std::string(tokenizer.TokenBytes(alternative.id)));
      top->set_logprob(alternative.logprob);
    }
  }
}
template void AddOutput(const TokenSink::Delivery&, bool, const Tokenizer&,
                        v1::GenerateStreamResponse&);
template void AddOutput(const TokenSink::Delivery&, bool, const Tokenizer&, v1::GenerateResponse&);

template <class Proto>
void SetCompletion(const Completion& completion, const PrecisionPolicySpec& policy,
                   Proto& response) {
  response.set_finish_reason(ToProto(completion.reason));
  *response.mutable_usage() = ToUsage(completion);
  *response.mutable_kv_cache() = ToKvCacheUsage(completion.kv, policy);
  *response.mutable_timings() = ToTimings(completion);
}
template void SetCompletion(const Completion&, const PrecisionPolicySpec&,
                            v1::GenerateStreamResponse&);
template void SetCompletion(const Completion&, const PrecisionPolicySpec&, v1::GenerateResponse&);

v1::GetModelResponse ToModelResponse(const ServingModel& model) {
  const ModelConfig& config = model.config();
  v1::GetModelResponse response;
  response.set_name(ToUtf8(config.name));
  response.set_architecture(ToUtf8(config.architecture));
  response.set_parameters(config.num_parameters);
  response.set_context_length(config.context_length);
  response.set_vocabulary_size(config.vocab_size);
  response.set_num_layers(config.num_layers);
  response.set_num_heads(config.num_heads);
  response.set_num_kv_heads(config.num_kv_heads);
  response.set_head_dim(config.head_dim);
  response.set_file_bytes(model.file_bytes());
  for (const int32_t id : model.tokenizer().end_of_generation_ids()) {
    response.add_end_of_generation_token_ids(id);
  }
  if (model.chat_format().ok()) response.set_chat_format(std::string(model.chat_format()->name()));
  response.set_kv_policy(model.engine().options().kv_policy.ToString());
  response.set_server_version(std::string(Version()));
  return response;
}

int64_t SavedBytes(const EngineSnapshot& snapshot) {
  const size_t kept = snapshot.pool.used_bytes + snapshot.pool.reclaimable_bytes;
  return static_cast<int64_t>(snapshot.fp16_equivalent_bytes) - static_cast<int64_t>(kept);
}

v1::GetCapacityResponse ToCapacityResponse(const EngineSnapshot& snapshot,
                                           const EngineOptions& options) {
  v1::GetCapacityResponse response;
  response.set_kv_cache_capacity_bytes(snapshot.pool.capacity_bytes);
  response.set_kv_cache_used_bytes(snapshot.pool.used_bytes);
  response.set_kv_cache_reclaimable_bytes(snapshot.pool.reclaimable_bytes);
  response.set_kv_cache_reserved_bytes(snapshot.reserved_bytes);
  response.set_headroom_tokens_floor(snapshot.headroom_tokens_floor);
  response.set_headroom_tokens_current(snapshot.headroom_tokens_current);
  response.set_requests_running(snapshot.running);
  response.set_requests_waiting(snapshot.waiting);
  response.set_waiting_prompt_tokens(snapshot.waiting_prompt_tokens);
  response.set_max_running_requests(options.max_running_requests);
  response.set_max_waiting_requests(options.max_waiting_requests);
  response.set_generated_tokens_per_second(snapshot.generated_tokens_per_second);
  for (int i = 0; i < kNumRungs; ++i) {
    if (snapshot.pool.used_bytes_by_rung[i] == 0) continue;
    v1::RungUsage* rung = response.add_rungs();
    rung->set_rung(std::string(RungName(static_cast<Rung>(i))));
    rung->set_tokens(snapshot.tokens_by_rung[i]);
    rung->set_bytes(snapshot.pool.used_bytes_by_rung[i]);
  }
  response.set_kv_cache_mean_bits(snapshot.mean_bits);
  response.set_draining(snapshot.draining);
  response.set_kv_cache_fp16_equivalent_bytes(snapshot.fp16_equivalent_bytes);
  response.set_kv_cache_saved_bytes(SavedBytes(snapshot));
  response.set_controller_price(snapshot.price);
  response.set_estimated_wait_seconds(absl::ToDoubleSeconds(snapshot.estimated_wait));
  response.set_max_waiting_prompt_tokens(options.max_waiting_prompt_tokens);
  return response;
}

}  // namespace whit
