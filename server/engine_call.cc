#include "server/engine_call.h"

#include <utility>

#include "server/status_conversion.h"

namespace whit {
EngineCall::EngineCall(ServiceContext& context, Engine& engine, std::string client,
                       std::string request_id, Callbacks callbacks)
    : context_(context),
      engine_(engine),
      client_(std::move(client)),
      request_id_(std::move(request_id)),
      callbacks_(std::move(callbacks)),
      sink_(std::make_shared<TokenSink>(
          [&delivering = context_.delivering, on_ready = callbacks_.on_ready] {
            delivering.Post([on_ready] { on_ready(); });
          })) {
  context_.active_calls.Add(this);
}

EngineCall::~EngineCall() { context_.active_calls.Remove(this); }

void EngineCall::Start(size_t text_bytes, std::function<absl::StatusOr<Request>()> prepare) {
  if (!client_.empty()) {
    absl::StatusOr<ClientUsage::Place> place = context_.authenticator->TakePlace(client_);
    if (!place.ok()) {
      Reject(place.status());
      return;
    }
    place_ = *std::move(place);
  }
  absl::StatusOr<Engine::Ticket> ticket = engine_.Admit();
  if (!ticket.ok()) {
    Reject(ticket.status());
    return;
  }
  if (text_bytes <= kInlineTextBytes) {
    PrepareAndSubmit(*std::move(ticket), prepare);
    return;
  }
  const bool posted = context_.tokenizing.TryPost(
      [self = shared_from_this(), ticket = *std::move(ticket),
       prepare = std::move(prepare)]() mutable {
        self->PrepareAndSubmit(std::move(ticket), prepare);
      },
      kMaxPendingTexts);
  if (!posted) Reject(TokenizerBusyError());
}

void EngineCall::PrepareAndSubmit(Engine::Ticket ticket,
                                  const std::function<absl::StatusOr<Request>()>& prepare) {
  if (const absl::Status reason = cancel_reason(); !reason.ok()) {
    Reject(reason);
    return;
  }
  absl::StatusOr<Request> request = prepare();
  if (!request.ok()) {
    Reject(request.status());
    return;
  }
  if (!client_.empty()) {
    request->client = client_;
    request->client_max_waiting_prompt_tokens =
        context_.authenticator->LimitsOf(client_).max_queued_prompt_tokens;
  }
  const absl::StatusOr<uint64_t> number =
      engine_.Submit(std::move(ticket), *std::move(request), sink_);
  if (!number.ok()) {
    Reject(number.status());
    return;
  }
  context_.load.OnSubmitted(engine_);
  // The request may have ended by now, and its reactor with it: only this object is sure to be
  // there.
  absl::MutexLock lock(&mutex_);
  request_number_ = *number;
  if (!cancel_reason_.ok()) engine_.Cancel(*number);
}

TokenSink::Delivery EngineCall::Take() {
  TokenSink::Delivery delivery = sink_->Take();
  if (delivery.completion) place_.reset();
  return delivery;
}

void EngineCall::Reject(const absl::Status& status) {
  place_.reset();
  callbacks_.on_rejected(status);
}

void EngineCall::Cancel(absl::Status reason) {
  absl::MutexLock lock(&mutex_);
  if (!cancel_reason_.ok()) return;
  cancel_reason_ = std::move(reason);
  if (request_number_) engine_.Cancel(*request_number_);
}

absl::Status EngineCall::cancel_reason() const {
  absl::MutexLock lock(&mutex_);
  return cancel_reason_;
}

}  // namespace whit
