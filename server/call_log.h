// CallLog: the one log line of a call, by which it is found again: its id, its trace, its client;
// and the status its client gets.
#ifndef WHIT_SERVER_CALL_LOG_H_
#define WHIT_SERVER_CALL_LOG_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/request.h"
#include "server/logging.h"
#include "server/service_context.h"
#include "server/trace_context.h"

namespace whit {

class CallLog {
 public:
  // `level` is that of the line if the call succeeds. The request's id is that of the header
  // x-request-id, which gateways make up, or a random one if there is none that can be used; a
  // traceparent is taken over if it is well formed. What is given outlives this.
  CallLog(const ServiceContext& context, LogLevel level, std::string_view method,
          grpc::CallbackServerContext& rpc);

  void set_request_id(std::string id) { id_ = std::move(id); }
  const std::string& request_id() const { return id_; }
  // Whose token the call brought; empty if none was needed.
  const std::string& client() const { return client_; }
  absl::Time start() const { return start_; }

  // Tells the client the request's id before the first message. Not before it is sure that there is
  // one: gRPC tries no call again of which it has got something.
  void EchoRequestId();

  // Tells the id now if that was not done before, writes the line and returns the status to finish
  // with. `reason` says why it ended ("stop", "queue_full"). The message of an INTERNAL error gets
  // the request's id, by which the log line is found.
  grpc::Status Finish(const absl::Status& status, std::string_view reason = "",
                      const Completion* completion = nullptr);
  // The same for a call that is turned away, with the trailers that say why and when to come back.
  grpc::Status Refuse(const absl::Status& status);

 private:
  const Logger& logger_;
  const LogLevel level_;
  const std::string_view method_;
  grpc::CallbackServerContext& rpc_;
  const std::string peer_;
  const std::string client_;
  const absl::Time start_;
  std::string id_;
  std::optional<TraceContext> trace_;
  bool echoed_ = false;
};

}  // namespace whit

#endif  // WHIT_SERVER_CALL_LOG_H_
