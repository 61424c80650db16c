#include "server/unary_reactor.h"

#include <iterator>
#include <string>
#include <utility>

#include "server/message_bytes.h"
#include "server/response_conversion.h"

namespace whit {

UnaryReactor::UnaryReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
                           grpc::ByteBuffer* response, std::string_view method)
    : context_(context),
      rpc_(rpc),
      log_(context, LogLevel::kInfo, method, *rpc),
      response_(response) {}

void UnaryReactor::StartCall(const ServingModel& model, size_t text_bytes,
                             std::function<absl::StatusOr<Request>()> prepare) {
  call_ = std::make_shared<EngineCall>(
      context_, model.engine(), log_.client(), log_.request_id(),
      EngineCall::Callbacks{
          .on_rejected = [this](const absl::Status& status) { FinishRejected(status); },
          .on_ready = [this] { OnReady(); }});
  call_->Start(text_bytes, std::move(prepare));
}

void UnaryReactor::FinishRejected(const absl::Status& status) {
  Finish(Reject(status, context_, log_, *rpc_));
}

void UnaryReactor::OnReady() {
  TokenSink::Delivery delivery = call_->Take();
  output_.text += delivery.text;
  output_.tokens.insert(output_.tokens.end(), std::make_move_iterator(delivery.tokens.begin()),
                        std::make_move_iterator(delivery.tokens.end()));
  if (!delivery.completion) return;
  output_.completion = std::move(delivery.completion);
  const Completion& completion = *output_.completion;
  const absl::Status status = FinalStatus(completion, call_->cancel_reason());
  if (status.ok()) Answer(output_, response_);
  context_.load.OnEnded(call_->engine(), status, *rpc_);
  Finish(log_.Finish(status, FinishReasonName(completion.reason), &completion));
}

void UnaryReactor::OnCancel() {
  if (call_ != nullptr && !DeadlinePassed(*rpc_, log_.start())) call_->Cancel();
}

GenerateReactor::GenerateReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
                                 grpc::ByteBuffer* response)
    : UnaryReactor(context, rpc, response, "Generate") {}

void GenerateReactor::Start(const grpc::ByteBuffer& request) {
  if (const absl::Status status = setup_.Read(request, *rpc_, context_, log_); !status.ok()) {
    FinishRejected(status);
    return;
  }
  StartCall(*setup_.model, PromptTextBytes(setup_.proto.prompt()),
            [this] { return setup_.Encode(); });
}

void GenerateReactor::Answer(const TokenSink::Delivery& output, grpc::ByteBuffer* response) {
  v1::GenerateResponse proto;
  AddOutput(output, setup_.proto.has_logprobs(), setup_.model->tokenizer(), proto);
  SetCompletion(*output.completion, setup_.policy, proto);
  AddExplanation(*output.completion, setup_.model->tokenizer(), *proto.mutable_kv_cache());
  proto.set_request_id(log_.request_id());
  *response = SerializeMessage(proto);
}

ScoreReactor::ScoreReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
                           grpc::ByteBuffer* response)
    : UnaryReactor(context, rpc, response, "Score") {}

void ScoreReactor::Start(const grpc::ByteBuffer& request) {
  if (const absl::Status status = Read(request); !status.ok()) {
    FinishRejected(status);
    return;
  }
  StartCall(*model_, PromptTextBytes(proto_.context()) + PromptTextBytes(proto_.continuation()),
            [this] { return Encode(); });
}

absl::Status ScoreReactor::Read(const grpc::ByteBuffer& request) {
  model_ = context_.model.load(std::memory_order_acquire);
  if (model_ == nullptr) return LoadingError();
  if (absl::Status status = ParseMessage(request, proto_); !status.ok()) return status;
  if (absl::Status status = CheckRequestId(proto_.request_id()); !status.ok()) return status;
  if (!proto_.request_id().empty()) log_.set_request_id(proto_.request_id());
  if (proto_.continuation().has_chat()) {
    return absl::InvalidArgumentError("continuation.chat: only text and token_ids can be scored");
  }
  if (absl::Status status = CheckPrompt(proto_.continuation(), "continuation", *model_);
      !status.ok()) {
    return status;
  }
  if (!IsEmpty(proto_.context())) {
    if (absl::Status status = CheckPrompt(proto_.context(), "context", *model_); !status.ok()) {
      return status;
    }
  }
  absl::StatusOr<RequestedPrecision> precision =
      ToPrecision(proto_.kv_cache(), model_->engine().options().kv_policy);
  if (!precision.ok()) return precision.status();
  precision_ = *std::move(precision);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ScoreReactor::EncodeContinuation() const {
  const v1::Prompt& continuation = proto_.continuation();
  return continuation.has_token_ids()
             ? ToTokenIds(continuation.token_ids().ids(), "continuation.token_ids.ids", *model_)
             : model_->tokenizer().Encode(continuation.text(), /*parse_special=*/false);
}

absl::StatusOr<Request> ScoreReactor::Encode() {
  Request request;
  request.id = log_.request_id();
  request.deadline = EngineDeadline(log_.start(), DeadlineOf(*rpc_));
  request.kv_policy = precision_.policy;
  request.kv_target_bits = precision_.target_bits;
  request.kv_floor = precision_.floor;
  request.explain = proto_.kv_cache().explain();
  request.max_new_tokens = 0;
  absl::StatusOr<std::vector<int32_t>> context =
      IsEmpty(proto_.context()) ? BeginOfText(model_->tokenizer())
                                : EncodePrompt(proto_.context(), "context", *model_);
  if (!context.ok()) return context.status();
  request.prompt = *std::move(context);
  const absl::StatusOr<std::vector<int32_t>> continuation = EncodeContinuation();
  if (!continuation.ok()) return continuation.status();
  // The very first token of a sequence has no probability.
  request.score_tokens = static_cast<int>(continuation->size()) - (request.prompt.empty() ? 1 : 0);
  if (request.score_tokens == 0) {
    return absl::InvalidArgumentError(
        "continuation has one token and nothing before it, so there is nothing to score");
  }
  request.prompt.insert(request.prompt.end(), continuation->begin(), continuation->end());
  return request;
}

void ScoreReactor::Answer(const TokenSink::Delivery& output, grpc::ByteBuffer* response) {
  v1::ScoreResponse proto;
  double total = 0;
  for (const TokenOutput& token : output.tokens) {
    proto.add_token_ids(token.id);
    proto.add_logprobs(token.logprob);
    proto.add_is_greedy(token.is_greedy);
    total += token.logprob;
  }
  proto.set_total_logprob(total);
  *proto.mutable_usage() = ToUsage(*output.completion);
  *proto.mutable_kv_cache() = ToKvCacheUsage(output.completion->kv, precision_.policy);
  AddExplanation(*output.completion, model_->tokenizer(), *proto.mutable_kv_cache());
  *response = SerializeMessage(proto);
}

}  // namespace whit
