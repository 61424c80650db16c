#include "server/stream_reactor.h"

#include <string>
#include <utility>

#include "server/message_bytes.h"
#include "server/response_conversion.h"

namespace whit {

StreamReactor::StreamReactor(ServiceContext& context, grpc::CallbackServerContext* rpc)
    : context_(context), rpc_(rpc), log_(context, LogLevel::kInfo, "GenerateStream", *rpc) {}

void StreamReactor::Start(const grpc::ByteBuffer& request) {
  if (const absl::Status status = setup_.Read(request, *rpc_, context_, log_); !status.ok()) {
    Finish(Reject(status, context_, log_, *rpc_));
    return;
  }
  call_ = std::make_shared<EngineCall>(
      context_, setup_.model->engine(), log_.client(),
      EngineCall::Callbacks{
          .on_rejected =
              [this](const absl::Status& status) { Finish(Reject(status, context_, log_, *rpc_)); },
          .on_ready = [this] { OnReady(); }});
  call_->Start(PromptTextBytes(setup_.proto.prompt()), [this] { return setup_.Encode(); });
}

void StreamReactor::OnReady() {
  {
    absl::MutexLock lock(&mutex_);
    if (busy_) {
      ready_ = true;
      return;
    }
    busy_ = true;
  }
  WriteNext();
}

void StreamReactor::OnWriteDone(bool ok) {
  if (!ok) broken_ = true;  // OnCancel sees to the request
  if (StayBusy()) WriteNext();
}

bool StreamReactor::StayBusy() {
  absl::MutexLock lock(&mutex_);
  busy_ = std::exchange(ready_, false);
  return busy_;
}

void StreamReactor::WriteNext() {
  do {
    const TokenSink::Delivery delivery = call_->Take();
    v1::GenerateStreamResponse response;
    AddOutput(delivery, setup_.proto.has_logprobs(), setup_.model->tokenizer(), response);
    if (delivery.completion) {
      WriteLast(std::move(response), *delivery.completion);
      return;
    }
    if (!broken_) {
      message_ = SerializeMessage(response);
      log_.EchoRequestId();
      StartWrite(&message_);
      return;
    }
  } while (StayBusy());
}

void StreamReactor::WriteLast(v1::GenerateStreamResponse response, const Completion& completion) {
  const absl::Status status = FinalStatus(completion, call_->cancel_reason());
  SetCompletion(completion, setup_.policy, response);
  AddExplanation(completion, setup_.model->tokenizer(), *response.mutable_kv_cache());
  if (!status.ok()) response.set_error_message(ToUtf8(ShortMessage(status)));
  response.set_request_id(log_.request_id());
  message_ = SerializeMessage(response);
  log_.EchoRequestId();
  context_.load.OnEnded(call_->engine(), status, *rpc_);
  const grpc::Status final_status =
      log_.Finish(status, FinishReasonName(completion.reason), &completion);
  if (broken_) {
    Finish(final_status);
  } else {
    StartWriteAndFinish(&message_, grpc::WriteOptions(), final_status);
  }
}

void StreamReactor::OnCancel() {
  if (call_ != nullptr && !DeadlinePassed(*rpc_, log_.start())) call_->Cancel();
}

}  // namespace whit
