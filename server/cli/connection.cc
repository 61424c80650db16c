#include "server/cli/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/flag_values.h"

namespace whit {
namespace {

// The server's grpc-retry-pushback-ms takes the place of the backoff. gRPC allows 5 attempts.
constexpr char kRetryPolicy[] = R"({
  "methodConfig": [{
    "name": [{"service": "whit.v1.TextGenerationService"}],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.2s",
      "maxBackoff": "5s",
      "backoffMultiplier": 3,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]
    }
  }]
})";

}  // namespace

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
  app.add_flag("--retry", flags.retry,
               "when the server is full or going down, try again, up to 4 times, each time after "
               "the delay that it names")
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
  if (flags.retry) {
    arguments.SetServiceConfigJSON(kRetryPolicy);
    // gRPC keeps a request of up to this size for the next attempt.
    arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, 16 << 20);
  }
  return grpc::CreateCustomChannel(flags.server, grpc::InsecureChannelCredentials(), arguments);
}

std::unique_ptr<v1::TextGenerationService::Stub> ConnectStub(const ConnectionFlags& flags) {
  return v1::TextGenerationService::NewStub(Connect(flags));
}

void SetDeadline(const ConnectionFlags& flags, grpc::ClientContext& context) {
  if (flags.timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + flags.timeout));
}

std::string FailureMessage(const grpc::Status& status, const ConnectionFlags& flags) {
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  return absl::StrCat(absl::StatusCodeToString(code), ": ", status.error_message(),
                      code == absl::StatusCode::kUnavailable ? "; server: " + flags.server : "");
}

int ReportFailure(const grpc::Status& status, const ConnectionFlags& flags, bool interrupted) {
  if (interrupted) return kExitInterrupted;
  std::fprintf(stderr, "whit: %s\n", FailureMessage(status, flags).c_str());
  return kExitFailed;
}

int ReportUsage(const std::string& message) {
  std::fprintf(stderr, "whit: %s\n", message.c_str());
  return kExitUsage;
}

}  // namespace whit
