#include "server/vllm/vllm_conversion.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kvpool/rung.h"
#include "server/metrics/load_report.h"
#include "server/response_conversion.h"
#include "server/version.h"

namespace whit {
namespace {

absl::Status Unsupported(const char* field) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is set, which this server does not support", field));
}

const char* ConstraintName(const vllm::SamplingParams& params) {
  switch (params.constraint_case()) {
    case vllm::SamplingParams::kJsonSchema:
      return "json_schema";
    case vllm::SamplingParams::kRegex:
      return "regex";
    case vllm::SamplingParams::kGrammar:
      return "grammar";
    case vllm::SamplingParams::kStructuralTag:
      return "structural_tag";
    case vllm::SamplingParams::kJsonObject:
      return "json_object";
    case vllm::SamplingParams::kChoice:
      return "choice";
    case vllm::SamplingParams::CONSTRAINT_NOT_SET:
      break;
  }
  return nullptr;
}

absl::Status CheckSupported(const vllm::GenerateRequest& request) {
  const vllm::SamplingParams& params = request.sampling_params();
  if (const char* const constraint = ConstraintName(params)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "sampling_params.%s is set, but this server does not support structured output",
        constraint));
  }
  if (params.has_prompt_logprobs()) return Unsupported("sampling_params.prompt_logprobs");
  if (params.min_tokens() > 0) return Unsupported("sampling_params.min_tokens");
  if (!params.logit_bias().empty()) return Unsupported("sampling_params.logit_bias");
  if (params.has_truncate_prompt_tokens()) {
    return Unsupported("sampling_params.truncate_prompt_tokens");
  }
  if (request.has_mm_inputs() || request.extra_mm_inputs_size() > 0) {
    return Unsupported("mm_inputs");
  }
  if (request.has_media_refs()) return Unsupported("media_refs");
  if (request.has_kv_transfer_params() || request.has_kv_transfer_params_json()) {
    return Unsupported("kv_transfer_params");
  }
  return absl::OkStatus();
}

v1::SamplingParameters ToSampling(const vllm::SamplingParams& params) {
  v1::SamplingParameters sampling;
  if (params.has_temperature()) sampling.set_temperature(params.temperature());
  if (params.top_k() != 0) sampling.set_top_k(params.top_k());
  if (params.top_p() != 0) sampling.set_top_p(params.top_p());
  if (params.min_p() != 0) sampling.set_min_p(params.min_p());
  if (params.repetition_penalty() != 0) {
    sampling.set_repetition_penalty(params.repetition_penalty());
  }
  sampling.set_presence_penalty(params.presence_penalty());
  sampling.set_frequency_penalty(params.frequency_penalty());
  if (params.has_seed()) sampling.set_seed(static_cast<uint32_t>(params.seed()));
  return sampling;
}

v1::StoppingCriteria ToStopping(const vllm::SamplingParams& params) {
  v1::StoppingCriteria stopping;
  if (params.has_max_tokens()) stopping.set_max_new_tokens(params.max_tokens());
  *stopping.mutable_stop() = params.stop();
  *stopping.mutable_stop_token_ids() = params.stop_token_ids();
  stopping.set_ignore_eos(params.ignore_eos());
  return stopping;
}

int32_t Saturated(double value) {
  return static_cast<int32_t>(std::clamp<double>(value, 0, std::numeric_limits<int32_t>::max()));
}

}  // namespace

absl::StatusOr<v1::GenerateStreamRequest> ToGenerateStreamRequest(vllm::GenerateRequest& request) {
  if (absl::Status status = CheckSupported(request); !status.ok()) return status;
  const vllm::SamplingParams& params = request.sampling_params();
  v1::GenerateStreamRequest result;
  if (request.has_text()) {
    result.mutable_prompt()->set_text(request.text());
  } else if (request.has_tokenized()) {
    result.mutable_prompt()->mutable_token_ids()->mutable_ids()->Swap(
        request.mutable_tokenized()->mutable_input_ids());
  }
  *result.mutable_sampling() = ToSampling(params);
  *result.mutable_stopping() = ToStopping(params);
  if (params.has_logprobs()) {
    if (params.logprobs() < 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "sampling_params.logprobs is %d; it must not be below 0", params.logprobs()));
    }
    result.set_logprobs(params.logprobs());
  }
  result.set_request_id(request.request_id());
  return result;
}

absl::StatusOr<int> NumGenerations(const vllm::SamplingParams& params,
                                   const EngineOptions& options) {
  const uint32_t n = std::max(params.n(), 1u);
  const int64_t most = int64_t{options.max_running_requests} + options.max_waiting_requests;
  if (n > most) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "sampling_params.n is %d; this server runs and queues at most %d at a time", n, most));
  }
  return static_cast<int>(n);
}

void AddLogprobs(absl::Span<const TokenOutput> tokens, int top, vllm::OutputLogProbs& logprobs) {
  for (const TokenOutput& token : tokens) {
    logprobs.add_token_ids(token.id);
    logprobs.add_token_logprobs(token.logprob);
    if (top == 0) continue;
    vllm::TopLogProbs* const alternatives = logprobs.add_top_logprobs();
    for (const TokenAlternative& alternative : token.top) {
      alternatives->add_token_ids(alternative.id);
      alternatives->add_values(alternative.logprob);
    }
  }
}

void SetCompletion(const Completion& completion, absl::Span<const uint32_t> stop_token_ids,
                   vllm::GenerateComplete& complete) {
  complete.set_finish_reason(std::string(FinishReasonName(completion.reason)));
  complete.set_prompt_tokens(completion.prompt_tokens);
  complete.set_completion_tokens(completion.completion_tokens);
  complete.set_cached_tokens(completion.cached_tokens);
  if (completion.reason != FinishReason::kStop || complete.output_ids().empty()) return;
  const uint32_t last = *complete.output_ids().rbegin();
  if (std::find(stop_token_ids.begin(), stop_token_ids.end(), last) != stop_token_ids.end()) {
    complete.set_matched_token_id(last);
  }
}

vllm::GetModelInfoResponse ToModelInfo(const ServingModel& model) {
  const ModelConfig& config = model.config();
  vllm::GetModelInfoResponse response;
  // A client must be able to name it.
  const std::string name = ToUtf8(config.name.empty() ? config.architecture : config.name);
  response.set_model_path(name);
  response.set_served_model_name(name);
  response.set_is_generation(true);
  response.set_max_context_length(config.context_length);
  response.set_max_req_input_len(config.context_length - 1);
  response.set_vocab_size(config.vocab_size);
  response.set_model_type(ToUtf8(config.architecture));
  response.add_architectures("LlamaForCausalLM");
  for (const int32_t id : model.tokenizer().end_of_generation_ids()) response.add_eos_token_ids(id);
  response.set_bos_token_id(std::max(model.tokenizer().bos_id(), 0));
  return response;
}

vllm::GetServerInfoResponse ToServerInfo(const EngineSnapshot& snapshot,
                                         const EngineOptions& options, absl::Duration uptime) {
  vllm::GetServerInfoResponse response;
  response.set_active_requests(snapshot.running + snapshot.waiting);
  response.set_uptime_seconds(absl::ToDoubleSeconds(uptime));
  response.set_server_type("whit");
  response.set_data_parallel_size(1);
  response.set_kv_cache_dtype(options.kv_policy.ToString());
  response.set_block_size(kTileTokens);
  response.set_max_num_seqs(options.max_running_requests);
  return response;
}

vllm::GetLoadsResponse ToLoads(const EngineSnapshot& snapshot, const EngineOptions& options,
                               absl::Time now) {
  vllm::GetLoadsResponse response;
  response.set_timestamp(absl::FormatTime(absl::RFC3339_full, now, absl::UTCTimeZone()));
  response.set_version(std::string(Version()));
  response.set_dp_rank_count(1);
  vllm::SchedulerLoad& load = *response.add_loads();
  load.set_num_running_reqs(snapshot.running);
  load.set_num_waiting_reqs(snapshot.waiting);
  load.set_num_total_reqs(snapshot.running + snapshot.waiting);
  const double used =
      std::accumulate(snapshot.tokens_by_rung.begin(), snapshot.tokens_by_rung.end(), 0.0);
  load.set_num_used_tokens(Saturated(used));
  load.set_max_total_num_tokens(
      Saturated(used + static_cast<double>(snapshot.headroom_tokens_current)));
  if (snapshot.pool.capacity_bytes > 0) {
    load.set_token_usage(static_cast<double>(snapshot.pool.used_bytes) /
                         static_cast<double>(snapshot.pool.capacity_bytes));
  }
  load.set_gen_throughput(snapshot.generated_tokens_per_second);
  if (snapshot.prefix_query_tokens_total > 0) {
    load.set_cache_hit_rate(static_cast<double>(snapshot.prefix_hit_tokens_total) /
                            static_cast<double>(snapshot.prefix_query_tokens_total));
  }
  load.set_utilization(Utilization(snapshot, options));
  load.set_max_running_requests(options.max_running_requests);
  load.set_num_waiting_uncached_tokens(
      Saturated(static_cast<double>(snapshot.waiting_prompt_tokens)));
  return response;
}

}  // namespace whit
