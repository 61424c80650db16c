// From the engine's results to the API's responses.
#ifndef WHIT_SERVER_RESPONSE_CONVERSION_H_
#define WHIT_SERVER_RESPONSE_CONVERSION_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/engine/engine.h"
#include "runtime/engine/request.h"
#include "runtime/engine/token_sink.h"
#include "runtime/text/tokenizer.h"
#include "server/serving_model.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

// What is not UTF-8 becomes U+FFFD: a string field must hold nothing else.
std::string ToUtf8(std::string_view bytes);

v1::FinishReason ToProto(FinishReason reason);
// "stop", "length", …: for metrics and logs.
std::string_view FinishReasonName(FinishReason reason);

v1::Usage ToUsage(const Completion& completion);
v1::KvCacheUsage ToKvCacheUsage(const KvUsage& usage, const PrecisionPolicySpec& policy);
// What KvCacheOptions.explain asks for.
void AddExplanation(const Completion& completion, const Tokenizer& tokenizer,
                    v1::KvCacheUsage& usage);
v1::Timings ToTimings(const Completion& completion);

// Adds tokens, text and log-probabilities. `Proto` is GenerateStreamResponse or GenerateResponse.
template <class Proto>
void AddOutput(const TokenSink::Delivery& delivery, bool with_logprobs, const Tokenizer& tokenizer,
               Proto& response);
// Sets finish_reason, usage, kv_cache and timings.
template <class Proto>
void SetCompletion(const Completion& completion, const PrecisionPolicySpec& policy,
                   Proto& response);

v1::GetModelResponse ToModelResponse(const ServingModel& model);
// FP16-equivalent bytes of all cached tokens less what their pages take; may be below 0.
int64_t SavedBytes(const EngineSnapshot& snapshot);
v1::GetCapacityResponse ToCapacityResponse(const EngineSnapshot& snapshot,
                                           const EngineOptions& options);

}  // namespace whit

#endif  // WHIT_SERVER_RESPONSE_CONVERSION_H_
