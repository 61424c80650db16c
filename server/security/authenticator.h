// Authenticator: lets in the calls that bring a token of --auth-tokens-file, and keeps each client
// within its limits.
#ifndef WHIT_SERVER_SECURITY_AUTHENTICATOR_H_
#define WHIT_SERVER_SECURITY_AUTHENTICATOR_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "server/log_limiter.h"
#include "server/logging.h"
#include "server/metrics/metrics.h"
#include "server/security/client_table.h"
#include "server/security/client_usage.h"
#include "server/security/watched_files.h"

namespace whit {

// Services that answer without a token: whoever probes a server's health often has none, and learns
// nothing else.
bool IsOpenToAll(std::string_view method_path);

// The token of the header `authorization`, "Bearer TOKEN".
absl::StatusOr<std::string_view> BearerToken(std::string_view authorization);

// Threads: any may call.
class Authenticator {
 public:
  // Errors name the file and, if one is at fault, its line. What is given outlives this.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(const std::string& tokens_file,
                                                               const Logger& logger,
                                                               Metrics& metrics);

  // Of a call, by the values of its headers `authorization`. UNAUTHENTICATED if there is no token
  // that somebody has, but for services that ask for none: that is counted, and logged within
  // limits. The file is looked at again if that was a second or more ago; one that is bad
  // is logged, and the last good one stays.
  absl::Status Check(std::string_view method_path,
                     absl::Span<const std::string_view> authorization);

  // Whose token that is; empty if it is nobody's.
  std::string ClientName(std::string_view authorization) const;
  ClientLimits LimitsOf(std::string_view client) const;
  // RESOURCE_EXHAUSTED if the client has as many requests as it may.
  absl::StatusOr<ClientUsage::Place> TakePlace(const std::string& client);

 private:
  Authenticator(const std::string& tokens_file, const Logger& logger, Metrics& metrics);
  absl::Status Load() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What Check refuses with, of the headers alone.
  static absl::Status Judge(const ClientTable& table,
                            absl::Span<const std::string_view> authorization);
  std::shared_ptr<const ClientTable> Table() const;
  std::shared_ptr<const ClientTable> ReloadedTable();
  void CountRefusal(std::string_view method_path, const absl::Status& status);

  const std::string tokens_file_;
  const Logger& logger_;
  Metrics& metrics_;
  ClientUsage usage_;
  LogLimiter refusal_log_;

  mutable absl::Mutex mutex_;
  WatchedFiles watched_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const ClientTable> table_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace whit

#endif  // WHIT_SERVER_SECURITY_AUTHENTICATOR_H_
