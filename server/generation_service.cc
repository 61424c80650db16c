#include "server/generation_service.h"

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/request_conversion.h"
#include "server/response_conversion.h"
#include "server/stream_reactor.h"
#include "server/unary_answer.h"
#include "server/unary_reactor.h"

namespace whit {
namespace {

absl::StatusOr<v1::TokenizeResponse> AnswerTokenize(const v1::TokenizeRequest& request,
                                                    const ServingModel& model) {
  absl::StatusOr<std::vector<int32_t>> tokens;
  switch (request.content_case()) {
    case v1::TokenizeRequest::CONTENT_NOT_SET:
      return absl::InvalidArgumentError("content is missing: give text or chat");
    case v1::TokenizeRequest::kText:
      tokens = model.tokenizer().Encode(request.text(), request.parse_special());
      break;
    case v1::TokenizeRequest::kChat:
      tokens = EncodeChat(request.chat(), model);
      break;
  }
  if (!tokens.ok()) return tokens.status();
  v1::TokenizeResponse response;
  response.mutable_token_ids()->Add(tokens->begin(), tokens->end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> AnswerDetokenize(const v1::DetokenizeRequest& request,
                                                        const ServingModel& model) {
  const absl::StatusOr<std::vector<int32_t>> tokens =
      ToTokenIds(request.token_ids(), "token_ids", model);
  if (!tokens.ok()) return tokens.status();
  std::string bytes;
  for (const int32_t id : *tokens) bytes += model.tokenizer().TokenBytes(id);
  v1::DetokenizeResponse response;
  response.set_text(ToUtf8(bytes));
  return response;
}

absl::StatusOr<v1::GetModelResponse> AnswerGetModel(const v1::GetModelRequest&,
                                                    const ServingModel& model) {
  return ToModelResponse(model);
}

absl::StatusOr<v1::GetCapacityResponse> AnswerGetCapacity(const v1::GetCapacityRequest&,
                                                          const ServingModel& model) {
  return ToCapacityResponse(model.engine().snapshot(), model.engine().options());
}

// Starts a reactor that owns itself.
template <class Reactor>
Reactor* Started(Reactor* reactor, const grpc::ByteBuffer& request) {
  reactor->Start(request);
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::GenerateStream(
    grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request) {
  return Started(new GenerateStreamReactor(context_, rpc), *request);
}

grpc::ServerUnaryReactor* GenerationService::Generate(grpc::CallbackServerContext* rpc,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Started(new GenerateReactor(context_, rpc, response), *request);
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* rpc,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  return Started(new ScoreReactor(context_, rpc, response), *request);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* rpc,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Answer<v1::TokenizeRequest>(context_, "Tokenize", LogLevel::kInfo, rpc, *request, response,
                                     AnswerTokenize);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* rpc,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return Answer<v1::DetokenizeRequest>(context_, "Detokenize", LogLevel::kInfo, rpc, *request,
                                       response, AnswerDetokenize);
}

// Gateways poll the two below: they would drown the log.

grpc::ServerUnaryReactor* GenerationService::GetModel(grpc::CallbackServerContext* rpc,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Answer<v1::GetModelRequest>(context_, "GetModel", LogLevel::kDebug, rpc, *request,
                                     response, AnswerGetModel);
}

grpc::ServerUnaryReactor* GenerationService::GetCapacity(grpc::CallbackServerContext* rpc,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return Answer<v1::GetCapacityRequest>(context_, "GetCapacity", LogLevel::kDebug, rpc, *request,
                                        response, AnswerGetCapacity);
}

}  // namespace whit
