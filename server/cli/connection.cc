#include "server/cli/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "server/flag_values.h"

namespace whit {

ConnectionFlags::ConnectionFlags() : server("127.0.0.1:50051") {
  const char* const from_environment = std::getenv("WHIT_SERVER");
  if (from_environment != nullptr && *from_environment != '\0') server = from_environment;
}

CLI::Option* AddDurationFlag(CLI::App& app, const std::string& name, absl::Duration& value,
                             const std::string& description) {
  return app
      .add_option_function<std::string>(
          name, [&value](const std::string& text) { value = *ParseDuration(text); }, description)
      ->type_name("DURATION")
      ->check([](const std::string& text) {
        return std::string(ParseDuration(text).status().message());
      });
}

void AddConnectionFlags(CLI::App& app, ConnectionFlags& flags) {
  app.add_option("--server", flags.server,
                 "HOST:PORT or unix:PATH of whitd; WHIT_SERVER if that is set")
      ->type_name("ADDRESS")
      ->capture_default_str()
      ->group("Connection");
  AddDurationFlag(app, "--timeout", flags.timeout, "deadline, such as 500ms or 30s; default none")
      ->group("Connection");
  app.add_flag("--json", flags.json, "print one JSON object a line, with the API's field names")
      ->group("Connection");
}

std::shared_ptr<grpc::Channel> Connect(const ConnectionFlags& flags) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // A server that is starting is found soon after it listens.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(flags.server, grpc::InsecureChannelCredentials(), arguments);
}

std::unique_ptr<v1::TextGenerationService::Stub> ConnectStub(const ConnectionFlags& flags) {
  return v1::TextGenerationService::NewStub(Connect(flags));
}

void SetDeadline(const ConnectionFlags& flags, grpc::ClientContext& context) {
  if (flags.timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + flags.timeout));
}

int ReportFailure(const grpc::Status& status, const ConnectionFlags& flags, bool interrupted) {
  if (interrupted) return kExitInterrupted;
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const bool unreachable = code == absl::StatusCode::kUnavailable;
  std::fprintf(stderr, "whit: %s: %s%s%s\n", absl::StatusCodeToString(code).c_str(),
               status.error_message().c_str(), unreachable ? "; server: " : "",
               unreachable ? flags.server.c_str() : "");
  return kExitFailed;
}

int ReportUsage(const std::string& message) {
  std::fprintf(stderr, "whit: %s\n", message.c_str());
  return kExitUsage;
}

}  // namespace whit
