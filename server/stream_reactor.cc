#include "server/stream_reactor.h"

#include <utility>

#include "server/message_bytes.h"
#include "server/response_conversion.h"

namespace whit {

StreamReactor::StreamReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
                             std::string_view method)
    : context_(context), rpc_(rpc), log_(context, LogLevel::kInfo, method, *rpc) {}

void StreamReactor::StartGenerations(const ServingModel& model, int generations, size_t text_bytes,
                                     const std::function<absl::StatusOr<Request>(int)>& prepare) {
  for (int i = 0; i < generations; ++i) {
    calls_.push_back(std::make_shared<EngineCall>(
        context_, model.engine(), log_.client(), log_.request_id(),
        EngineCall::Callbacks{.on_rejected =
                                  [this, i](const absl::Status& status) {
                                    OnEvent({i, status});
                                  },
                              .on_ready =
                                  [this, i] {
                                    OnEvent({i, absl::OkStatus()});
                                  }}));
  }
  // The call may end with any of them.
  const std::vector<std::shared_ptr<EngineCall>> calls = calls_;
  for (int i = 0; i < generations; ++i) {
    calls[i]->Start(text_bytes, [prepare, i] { return prepare(i); });
  }
}

void StreamReactor::FinishRejected(const absl::Status& status) {
  Finish(Reject(status, context_, log_, *rpc_));
}

void StreamReactor::OnEvent(Event event) {
  {
    absl::MutexLock lock(&mutex_);
    events_.push_back(std::move(event));
    if (std::exchange(busy_, true)) return;
  }
  WriteNext();
}

void StreamReactor::OnWriteDone(bool ok) {
  if (!ok) broken_ = true;  // OnCancel sees to the requests
  messages_.pop_front();
  WriteNext();
}

void StreamReactor::WriteNext() {
  while (messages_.empty() || broken_) {
    messages_.clear();
    if (ended_ == calls_.size()) {
      Finish(End());
      return;
    }
    const std::optional<Event> event = NextEvent();
    if (!event) return;
    Handle(*event);
  }
  if (ended_ == calls_.size() && messages_.size() == 1) {
    StartWriteAndFinish(&messages_.front(), grpc::WriteOptions(), End());
  } else {
    StartWrite(&messages_.front());
  }
}

std::optional<StreamReactor::Event> StreamReactor::NextEvent() {
  absl::MutexLock lock(&mutex_);
  if (events_.empty()) {
    busy_ = false;
    return std::nullopt;
  }
  Event event = std::move(events_.front());
  events_.pop_front();
  return event;
}

void StreamReactor::Handle(const Event& event) {
  if (!event.rejection.ok()) {
    ++ended_;
    if (!failure_.ok()) return;
    rejected_ = true;
    Fail(event.rejection, Reject(event.rejection, context_, log_, *rpc_));
    return;
  }
  EngineCall& call = *calls_[event.generation];
  const TokenSink::Delivery delivery = call.Take();
  absl::Status status;
  if (delivery.completion) status = FinalStatus(*delivery.completion, call.cancel_reason());
  AddMessages(event.generation, delivery, status, messages_);
  if (!messages_.empty()) log_.EchoRequestId();
  if (!delivery.completion) return;
  ++ended_;
  const grpc::Status final_status =
      log_.Finish(status, FinishReasonName(delivery.completion->reason), &*delivery.completion);
  if (!status.ok() && failure_.ok()) Fail(status, final_status);
}

void StreamReactor::Fail(const absl::Status& status, const grpc::Status& final_status) {
  failure_ = status;
  final_status_ = final_status;
  for (const std::shared_ptr<EngineCall>& call : calls_) call->Cancel(status);
}

grpc::Status StreamReactor::End() {
  if (!rejected_) context_.load.OnEnded(calls_.front()->engine(), failure_, *rpc_);
  return final_status_;
}

void StreamReactor::OnCancel() {
  if (DeadlinePassed(*rpc_, log_.start())) return;
  for (const std::shared_ptr<EngineCall>& call : calls_) call->Cancel();
}

GenerateStreamReactor::GenerateStreamReactor(ServiceContext& context,
                                             grpc::CallbackServerContext* rpc)
    : StreamReactor(context, rpc, "GenerateStream") {}

void GenerateStreamReactor::Start(const grpc::ByteBuffer& request) {
  if (const absl::Status status = setup_.Read(request, *rpc_, context_, log_); !status.ok()) {
    FinishRejected(status);
    return;
  }
  StartGenerations(*setup_.model, 1, PromptTextBytes(setup_.proto.prompt()),
                   [this](int) { return setup_.Encode(); });
}

void GenerateStreamReactor::AddMessages(int, const TokenSink::Delivery& delivery,
                                        const absl::Status& status, Messages& messages) {
  v1::GenerateStreamResponse response;
  AddOutput(delivery, setup_.proto.has_logprobs(), setup_.model->tokenizer(), response);
  if (delivery.completion) {
    SetCompletion(*delivery.completion, setup_.policy, response);
    AddExplanation(*delivery.completion, setup_.model->tokenizer(), *response.mutable_kv_cache());
    if (!status.ok()) response.set_error_message(ToUtf8(ShortMessage(status)));
    response.set_request_id(log_.request_id());
  }
  messages.push_back(SerializeMessage(response));
}

}  // namespace whit
