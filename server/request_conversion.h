// From the API's requests to the engine's.
#ifndef WHIT_SERVER_REQUEST_CONVERSION_H_
#define WHIT_SERVER_REQUEST_CONVERSION_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/precision_policy.h"
#include "runtime/engine/request.h"
#include "runtime/text/chat_format.h"
#include "runtime/text/tokenizer.h"
#include "server/serving_model.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

// Everything of a generation but its prompt and id. Checks what the engine's types could not hold;
// ranges are the engine's own business (ValidateRequest). `Proto` is GenerateStreamRequest or
// GenerateRequest.
template <class Proto>
absl::StatusOr<Request> ToEngineRequest(const Proto& proto,
                                        const PrecisionPolicySpec& default_policy);

// Of Request: kv_policy, kv_target_bits and kv_floor.
struct RequestedPrecision {
  PrecisionPolicySpec policy{};
  double target_bits = 0;
  std::optional<Rung> floor{};
};
// INVALID_ARGUMENT names the field.
absl::StatusOr<RequestedPrecision> ToPrecision(const v1::KvCacheOptions& kv_cache,
                                               const PrecisionPolicySpec& default_policy);

// 16 hexadecimal digits.
std::string RandomRequestId();
// INVALID_ARGUMENT if a request's own id is longer than 128 bytes or not printable ASCII.
absl::Status CheckRequestId(std::string_view id);

// Nothing is given, or an empty something.
bool IsEmpty(const v1::Prompt& prompt);
// The bytes of its text; none for token ids.
size_t PromptTextBytes(const v1::Prompt& prompt);

// Whether the prompt may have a place in the queue: it has a content that is not empty, and its
// text is not surely longer than the context. Cheap; `field` is the prompt's name in error
// messages.
absl::Status CheckPrompt(const v1::Prompt& prompt, std::string_view field,
                         const ServingModel& model);

// The tokens of a prompt that passed CheckPrompt. Text and chat begin with BeginOfText.
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const v1::Prompt& prompt, std::string_view field,
                                                  const ServingModel& model);
absl::StatusOr<std::vector<int32_t>> EncodeChat(const v1::Chat& chat, const ServingModel& model);
// INVALID_ARGUMENT names the first id out of the vocabulary.
absl::StatusOr<std::vector<int32_t>> ToTokenIds(
    const google::protobuf::RepeatedField<uint32_t>& ids, std::string_view field,
    const ServingModel& model);
// The token that every text begins with, if the model wants one.
std::vector<int32_t> BeginOfText(const Tokenizer& tokenizer);

}  // namespace whit

#endif  // WHIT_SERVER_REQUEST_CONVERSION_H_
