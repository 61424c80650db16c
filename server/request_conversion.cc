#include "server/request_conversion.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvpool/rung.h"

namespace whit {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;
constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();

SamplingParams ToSamplingParams(const v1::SamplingParameters& proto) {
  SamplingParams params;
  if (proto.has_temperature()) params.temperature = proto.temperature();
  // More than any vocabulary holds keeps all, as kMaxInt does.
  if (proto.has_top_k()) {
    params.top_k = static_cast<int>(std::min<uint32_t>(proto.top_k(), kMaxInt));
  }
  if (proto.has_top_p()) params.top_p = proto.top_p();
  if (proto.has_min_p()) params.min_p = proto.min_p();
  if (proto.has_repetition_penalty()) params.repetition_penalty = proto.repetition_penalty();
  if (proto.has_presence_penalty()) params.presence_penalty = proto.presence_penalty();
  if (proto.has_frequency_penalty()) params.frequency_penalty = proto.frequency_penalty();
  if (proto.has_seed()) params.seed = proto.seed();
  return params;
}

absl::Status Prefixed(const absl::Status& status, std::string_view field) {
  return absl::Status(status.code(), absl::StrCat(std::string(field), ": ", status.message()));
}

size_t ChatBytes(const v1::Chat& chat) {
  size_t bytes = 0;
  for (const v1::ChatMessage& message : chat.messages()) bytes += message.content().size();
  return bytes;
}

}  // namespace

absl::StatusOr<RequestedPrecision> ToPrecision(const v1::KvCacheOptions& kv_cache,
                                               const PrecisionPolicySpec& default_policy) {
  RequestedPrecision precision = {.policy = default_policy};
  if (kv_cache.has_target_bits()) {
    // Zero stands for none in the engine.
    if (!(kv_cache.target_bits() >= kMinTargetBits && kv_cache.target_bits() <= kMaxTargetBits)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("kv_cache.target_bits is %g; it must be between %g and %g",
                          kv_cache.target_bits(), kMinTargetBits, kMaxTargetBits));
    }
    precision.target_bits = kv_cache.target_bits();
  }
  if (kv_cache.has_floor_rung()) {
    const absl::StatusOr<Rung> floor = ParseRung(kv_cache.floor_rung());
    if (!floor.ok()) return Prefixed(floor.status(), "kv_cache.floor_rung");
    precision.floor = *floor;
  }
  if (!kv_cache.has_policy()) return precision;
  const absl::StatusOr<PrecisionPolicySpec> policy = ParsePrecisionPolicy(kv_cache.policy());
  if (!policy.ok()) return Prefixed(policy.status(), "kv_cache.policy");
  precision.policy = *policy;
  return precision;
}

template <class Proto>
absl::StatusOr<Request> ToEngineRequest(const Proto& proto,
                                        const PrecisionPolicySpec& default_policy) {
  const absl::StatusOr<RequestedPrecision> precision =
      ToPrecision(proto.kv_cache(), default_policy);
  if (!precision.ok()) return precision.status();

  Request request;
  request.kv_policy = precision->policy;
  request.kv_target_bits = precision->target_bits;
  request.kv_floor = precision->floor;
  request.explain = proto.kv_cache().explain();
  request.sampling = ToSamplingParams(proto.sampling());
  const v1::StoppingCriteria& stopping = proto.stopping();
  if (stopping.has_max_new_tokens()) request.max_new_tokens = stopping.max_new_tokens();
  request.stop.assign(stopping.stop().begin(), stopping.stop().end());
  // Ids too large for the engine's type turn negative, which ValidateRequest takes for what they
  // are.
  request.stop_token_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  request.ignore_eos = stopping.ignore_eos();
  if (proto.has_logprobs()) {
    if (proto.logprobs() > kMaxInt) {
      return absl::InvalidArgumentError(
          absl::StrFormat("logprobs is %d, far more than may be asked for", proto.logprobs()));
    }
    request.logprobs = static_cast<int>(proto.logprobs());
  }
  return request;
}
template absl::StatusOr<Request> ToEngineRequest(const v1::GenerateStreamRequest&,
                                                 const PrecisionPolicySpec&);
template absl::StatusOr<Request> ToEngineRequest(const v1::GenerateRequest&,
                                                 const PrecisionPolicySpec&);

std::string RandomRequestId() {
  absl::InsecureBitGen random;
  return absl::StrFormat("%016x", absl::Uniform<uint64_t>(random));
}

absl::Status CheckRequestId(std::string_view id) {
  if (id.size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("request_id has %d bytes; at most %d", id.size(), kMaxRequestIdBytes));
  }
  for (size_t i = 0; i < id.size(); ++i) {
    if (id[i] < ' ' || id[i] > '~') {
      return absl::InvalidArgumentError(
          absl::StrFormat("request_id has a byte that is not printable ASCII at offset %d", i));
    }
  }
  return absl::OkStatus();
}

bool IsEmpty(const v1::Prompt& prompt) {
  switch (prompt.content_case()) {
    case v1::Prompt::CONTENT_NOT_SET:
      return true;
    case v1::Prompt::kText:
      return prompt.text().empty();
    case v1::Prompt::kTokenIds:
      return prompt.token_ids().ids().empty();
    case v1::Prompt::kChat:
      return prompt.chat().messages().empty();
  }
  return true;
}

size_t PromptTextBytes(const v1::Prompt& prompt) {
  return prompt.has_chat() ? ChatBytes(prompt.chat()) : prompt.text().size();
}

absl::Status CheckPrompt(const v1::Prompt& prompt, std::string_view field,
                         const ServingModel& model) {
  const std::string name(field);
  if (prompt.content_case() == v1::Prompt::CONTENT_NOT_SET) {
    return absl::InvalidArgumentError(name + " is missing: give text, token_ids or chat");
  }
  if (IsEmpty(prompt)) return absl::InvalidArgumentError(name + " is empty");
  // Tokenizing what cannot fit would be work for nothing.
  const size_t bytes = PromptTextBytes(prompt);
  const size_t least_tokens = bytes / model.max_token_bytes();
  if (least_tokens > static_cast<size_t>(model.config().context_length)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has %d bytes, at least %d tokens; the model's context has %d", name,
                        bytes, least_tokens, model.config().context_length));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ToTokenIds(
    const google::protobuf::RepeatedField<uint32_t>& ids, std::string_view field,
    const ServingModel& model) {
  const auto vocab_size = static_cast<uint32_t>(model.config().vocab_size);
  std::vector<int32_t> tokens;
  tokens.reserve(ids.size());
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrFormat("%s[%d] is %d, which is not in [0, %d)",
                                                        std::string(field), i, ids[i], vocab_size));
    }
    tokens.push_back(static_cast<int32_t>(ids[i]));
  }
  return tokens;
}

std::vector<int32_t> BeginOfText(const Tokenizer& tokenizer) {
  if (!tokenizer.add_bos()) return {};
  return {tokenizer.bos_id()};
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const v1::Chat& chat, const ServingModel& model) {
  if (!model.chat_format().ok()) return model.chat_format().status();
  std::vector<ChatMessage> messages;
  messages.reserve(chat.messages_size());
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({.role = message.role(), .content = message.content()});
  }
  const absl::StatusOr<std::vector<TextSegment>> segments = model.chat_format()->Render(messages);
  if (!segments.ok()) return segments.status();
  absl::StatusOr<std::vector<int32_t>> tokens = model.tokenizer().EncodeSegments(*segments);
  if (!tokens.ok()) return tokens;
  const std::vector<int32_t> begin = BeginOfText(model.tokenizer());
  tokens->insert(tokens->begin(), begin.begin(), begin.end());
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const v1::Prompt& prompt, std::string_view field,
                                                  const ServingModel& model) {
  if (prompt.has_token_ids()) {
    return ToTokenIds(prompt.token_ids().ids(), std::string(field) + ".token_ids.ids", model);
  }
  if (prompt.has_chat()) {
    absl::StatusOr<std::vector<int32_t>> tokens = EncodeChat(prompt.chat(), model);
    if (!tokens.ok()) return Prefixed(tokens.status(), std::string(field) + ".chat");
    return tokens;
  }
  const absl::StatusOr<std::vector<int32_t>> text =
      model.tokenizer().Encode(prompt.text(), /*parse_special=*/false);
  if (!text.ok()) return Prefixed(text.status(), std::string(field) + ".text");
  std::vector<int32_t> tokens = BeginOfText(model.tokenizer());
  tokens.insert(tokens.end(), text->begin(), text->end());
  return tokens;
}

}  // namespace whit
