// cli: `whit`, the command-line client. It knows the API alone, nothing of the runtime.
//
// This file: the connection to a server, and how a command ends.
#ifndef WHIT_SERVER_CLI_CONNECTION_H_
#define WHIT_SERVER_CLI_CONNECTION_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "whit/v1/text_generation.grpc.pb.h"

namespace whit {

// Exit statuses.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;         // the server said no, or could not be reached
inline constexpr int kExitUsage = 2;          // a wrong flag
inline constexpr int kExitInterrupted = 130;  // Ctrl-C, as shells have it

// Runs the command that the command line chose; returns its exit status.
using Command = std::function<int()>;

// Flags that every subcommand has.
struct ConnectionFlags {
  ConnectionFlags();  // the defaults are those of WHIT_SERVER, WHIT_TLS_CA and WHIT_TOKEN, if set
  std::string server;
  absl::Duration timeout = absl::InfiniteDuration();
  bool json = false;
  bool retry = false;
  // Contents of PEM files. Without authorities TLS is not spoken.
  std::string tls_ca, tls_certificate, tls_key;
  std::string tls_server_name;  // empty: that of `server`
  std::string token;            // empty: none is sent
};
void AddConnectionFlags(CLI::App& app, ConnectionFlags& flags);
// What is wrong with them together; empty if nothing is.
std::string CheckConnectionFlags(const ConnectionFlags& flags);
// A flag whose value is a duration.
CLI::Option* AddDurationFlag(CLI::App& app, const std::string& name, absl::Duration& value,
                             const std::string& description);

std::shared_ptr<grpc::Channel> Connect(const ConnectionFlags& flags);
std::unique_ptr<v1::TextGenerationService::Stub> ConnectStub(const ConnectionFlags& flags);
// Gives a call its deadline and its token.
void SetUpCall(const ConnectionFlags& flags, grpc::ClientContext& context);

// "INVALID_ARGUMENT: prompt is empty"; names the server if it could not be reached.
std::string FailureMessage(const grpc::Status& status, const ConnectionFlags& flags);
// "whit: " and that on standard error; returns the exit status. One that was cancelled by Ctrl-C
// says nothing.
int ReportFailure(const grpc::Status& status, const ConnectionFlags& flags,
                  bool interrupted = false);
// "whit: MESSAGE"; returns kExitUsage.
int ReportUsage(const std::string& message);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_CONNECTION_H_
