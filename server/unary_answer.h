// Calls that do not go through the engine.
#ifndef WHIT_SERVER_UNARY_ANSWER_H_
#define WHIT_SERVER_UNARY_ANSWER_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "server/call_log.h"
#include "server/logging.h"
#include "server/message_bytes.h"
#include "server/service_context.h"
#include "server/serving_model.h"
#include "server/status_conversion.h"

namespace whit {

// Answers a call that does not go through the engine by what `handler` makes of the request and the
// model: an absl::StatusOr of the response. Those that bring much text are answered on the
// tokenizing thread.
template <class Request, class Handler>
grpc::ServerUnaryReactor* Answer(ServiceContext& context, std::string_view method, LogLevel level,
                                 grpc::CallbackServerContext* rpc, const grpc::ByteBuffer& bytes,
                                 grpc::ByteBuffer* response, Handler handler) {
  grpc::ServerUnaryReactor* const reactor = rpc->DefaultReactor();
  const auto log = std::make_shared<CallLog>(context, level, method, *rpc);
  const auto fail = [reactor, log](const absl::Status& status) {
    reactor->Finish(log->Refuse(status));
    return reactor;
  };

  const ServingModel* const model = context.model.load(std::memory_order_acquire);
  if (model == nullptr) return fail(LoadingError());
  const auto request = std::make_shared<Request>();
  if (const absl::Status status = ParseMessage(bytes, *request); !status.ok()) return fail(status);

  auto work = [=] {
    const auto answer = handler(*request, *model);
    if (!answer.ok()) {
      fail(answer.status());
      return;
    }
    *response = SerializeMessage(*answer);
    reactor->Finish(log->Finish(absl::OkStatus()));
  };
  if (bytes.Length() <= kInlineTextBytes) {
    work();
  } else if (!context.tokenizing.TryPost(std::move(work), kMaxPendingTexts)) {
    return fail(TokenizerBusyError());
  }
  return reactor;
}

}  // namespace whit

#endif  // WHIT_SERVER_UNARY_ANSWER_H_
