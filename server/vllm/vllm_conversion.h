// Between the wire of vllm.grpc.engine.VllmEngine and our own API's and the engine's types.
#ifndef WHIT_SERVER_VLLM_VLLM_CONVERSION_H_
#define WHIT_SERVER_VLLM_VLLM_CONVERSION_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/request.h"
#include "server/serving_model.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

namespace vllm = ::vllm::grpc::engine;

// One generation of `request`, whose prompt it takes, in the terms of our own API. Where zero is no
// value of a field, or it is the same as none, zero means unset. INVALID_ARGUMENT names what Whit
// does not do: a constraint on the output, log-probabilities of the prompt, media and the like.
// Ranges are checked later, as those of any request.
absl::StatusOr<v1::GenerateStreamRequest> ToGenerateStreamRequest(vllm::GenerateRequest& request);

// How many generations are asked for. INVALID_ARGUMENT if they are more than this engine ever takes
// at once.
absl::StatusOr<int> NumGenerations(const vllm::SamplingParams& params,
                                   const EngineOptions& options);

// `top`: alternatives that were asked for.
void AddLogprobs(absl::Span<const TokenOutput> tokens, int top, vllm::OutputLogProbs& logprobs);

// Of a generation that ended well: sets the finish reason, the token that stopped it, and the
// counts of tokens. `complete` has its output_ids.
void SetCompletion(const Completion& completion, absl::Span<const uint32_t> stop_token_ids,
                   vllm::GenerateComplete& complete);

vllm::GetModelInfoResponse ToModelInfo(const ServingModel& model);
vllm::GetServerInfoResponse ToServerInfo(const EngineSnapshot& snapshot,
                                         const EngineOptions& options, absl::Duration uptime);
vllm::GetLoadsResponse ToLoads(const EngineSnapshot& snapshot, const EngineOptions& options,
                               absl::Time now);

}  // namespace whit

#endif  // WHIT_SERVER_VLLM_VLLM_CONVERSION_H_
