#include "server/vllm/vllm_generate_reactor.h"

#include <cstdint>
#include <utility>

#include "server/message_bytes.h"
#include "server/request_conversion.h"

namespace whit {
namespace {

// Gives `complete` away.
grpc::ByteBuffer CompleteMessage(vllm::GenerateComplete& complete) {
  vllm::GenerateResponse response;
  response.mutable_complete()->Swap(&complete);
  return SerializeMessage(response);
}

}  // namespace

VllmGenerateReactor::VllmGenerateReactor(ServiceContext& context, grpc::CallbackServerContext* rpc)
    : StreamReactor(context, rpc, "VllmEngine.Generate") {}

void VllmGenerateReactor::Start(const grpc::ByteBuffer& request) {
  if (const absl::Status status = Read(request); !status.ok()) {
    FinishRejected(status);
    return;
  }
  StartGenerations(*setup_.model, static_cast<int>(outputs_.size()),
                   PromptTextBytes(setup_.proto.prompt()), [this](int i) { return Prepare(i); });
}

absl::Status VllmGenerateReactor::Read(const grpc::ByteBuffer& bytes) {
  vllm::GenerateRequest wire;
  if (absl::Status status = ParseMessage(bytes, wire); !status.ok()) return status;
  absl::StatusOr<v1::GenerateStreamRequest> proto = ToGenerateStreamRequest(wire);
  if (!proto.ok()) return proto.status();
  setup_.proto = *std::move(proto);
  if (absl::Status status = setup_.Check(*rpc_, context_, log_); !status.ok()) return status;
  const absl::StatusOr<int> generations =
      NumGenerations(wire.sampling_params(), setup_.model->engine().options());
  if (!generations.ok()) return generations.status();
  stream_ = wire.stream();
  outputs_.resize(*generations);
  for (int i = 0; i < *generations; ++i) outputs_[i].set_index(i);
  return absl::OkStatus();
}

// All generations are prepared on the same thread, one after the other: should the first fail, none
// of the others gets here.
absl::StatusOr<Request> VllmGenerateReactor::Prepare(int generation) {
  if (generation == 0) {
    absl::StatusOr<Request> encoded = setup_.Encode();
    if (!encoded.ok()) return encoded.status();
    request_ = *std::move(encoded);
    prompt_tokens_ = static_cast<uint32_t>(request_.prompt.size());
  }
  Request request = request_;
  if (request.sampling.seed) *request.sampling.seed += generation;
  return request;
}

void VllmGenerateReactor::AddMessages(int generation, const TokenSink::Delivery& delivery,
                                      const absl::Status& status, Messages& messages) {
  vllm::GenerateComplete& output = outputs_[generation];
  for (const TokenOutput& token : delivery.tokens) output.add_output_ids(token.id);

  vllm::GenerateResponse piece;
  vllm::GenerateStreamChunk& chunk = *piece.mutable_chunk();
  if (setup_.proto.has_logprobs()) {
    AddLogprobs(delivery.tokens, static_cast<int>(setup_.proto.logprobs()),
                stream_ ? *chunk.mutable_output_logprobs() : *output.mutable_output_logprobs());
  }
  if (stream_ && !delivery.tokens.empty()) {
    for (const TokenOutput& token : delivery.tokens) chunk.add_token_ids(token.id);
    chunk.set_prompt_tokens(prompt_tokens_);
    chunk.set_completion_tokens(static_cast<uint32_t>(delivery.tokens.size()));
    chunk.set_index(generation);
    messages.push_back(SerializeMessage(piece));
  }

  if (!delivery.completion || !status.ok()) return;
  SetCompletion(*delivery.completion, setup_.proto.stopping().stop_token_ids(), output);
  if (stream_) {
    messages.push_back(CompleteMessage(output));
    return;
  }
  while (next_ < outputs_.size() && !outputs_[next_].finish_reason().empty()) {
    messages.push_back(CompleteMessage(outputs_[next_++]));
  }
}

}  // namespace whit
