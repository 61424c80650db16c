// CallLog: the one log line of a call, and the status its client gets.
#ifndef WHIT_SERVER_CALL_LOG_H_
#define WHIT_SERVER_CALL_LOG_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/request.h"
#include "server/logging.h"

namespace whit {

class CallLog {
 public:
  // `level` is that of the line if the call succeeds.
  CallLog(const Logger& logger, LogLevel level, std::string_view method,
          const grpc::CallbackServerContext& context);

  void set_request_id(std::string id) { id_ = std::move(id); }
  const std::string& request_id() const { return id_; }
  absl::Time start() const { return start_; }

  // Writes the line and returns the status to finish with. `reason` says why it ended ("stop",
  // "queue_full"). The message of an INTERNAL error gets the request's id, by which the log line is
  // found.
  grpc::Status Finish(const absl::Status& status, std::string_view reason = "",
                      const Completion* completion = nullptr) const;

 private:
  const Logger& logger_;
  const LogLevel level_;
  const std::string_view method_;
  const std::string peer_;
  const absl::Time start_;
  std::string id_;
};

}  // namespace whit

#endif  // WHIT_SERVER_CALL_LOG_H_
