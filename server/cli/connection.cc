#include "server/cli/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/flag_values.h"
#include "server/small_file.h"

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

constexpr char kGroup[] = "Connection";

// Empty if it is not set.
std::string FromEnvironment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// A flag that names a file, for what is in it.
CLI::Option* AddFileFlag(CLI::App& app, const std::string& name, std::string& content,
                         const std::string& description) {
  return app
      .add_option_function<std::string>(
          name, [&content](const std::string& path) { content = *ReadSmallFile(path); },
          description)
      ->type_name("FILE")
      ->check([](const std::string& path) {
        return std::string(ReadSmallFile(path).status().message());
      })
      ->group(kGroup);
}

}  // namespace

ConnectionFlags::ConnectionFlags()
    : server(FromEnvironment("WHIT_SERVER")), token(FromEnvironment("WHIT_TOKEN")) {
  if (server.empty()) server = "127.0.0.1:50051";
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
      ->group(kGroup);
  AddFileFlag(app, "--tls-ca", flags.tls_ca,
              "speak TLS with a server whose certificate one of these authorities, in PEM, has "
              "signed; WHIT_TLS_CA if that is set")
      ->envname("WHIT_TLS_CA");
  AddFileFlag(app, "--tls-certificate", flags.tls_certificate,
              "the certificate to show to a server that asks for one, in PEM");
  AddFileFlag(app, "--tls-key", flags.tls_key, "its private key, in PEM");
  app.add_option("--tls-server-name", flags.tls_server_name,
                 "the name that the server's certificate must have, if not that of --server")
      ->type_name("NAME")
      ->group(kGroup);
  AddFileFlag(app, "--token-file", flags.token,
              "holds the token to send; the default is the token in WHIT_TOKEN");
  AddDurationFlag(app, "--timeout", flags.timeout, "deadline, such as 500ms or 30s; default none")
      ->group(kGroup);
  app.add_flag("--retry", flags.retry,
               "when the server is full or going down, try again, up to 4 times, each time after "
               "the delay that it names")
      ->group(kGroup);
  app.add_flag("--json", flags.json, "print one JSON object a line, with the API's field names")
      ->group(kGroup);
}

std::string CheckConnectionFlags(const ConnectionFlags& flags) {
  if (flags.tls_certificate.empty() != flags.tls_key.empty()) {
    return "--tls-certificate and --tls-key go together";
  }
  if (!flags.tls_certificate.empty() && flags.tls_ca.empty()) {
    return "--tls-certificate needs --tls-ca, by which the server is known";
  }
  const absl::string_view token = absl::StripAsciiWhitespace(flags.token);
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
    return "the token has a byte that is not a printable ASCII character";
  }
  return "";
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
  if (flags.tls_ca.empty()) {
    return grpc::CreateCustomChannel(flags.server, grpc::InsecureChannelCredentials(), arguments);
  }
  if (!flags.tls_server_name.empty()) arguments.SetSslTargetNameOverride(flags.tls_server_name);
  const auto credentials = grpc::SslCredentials({.pem_root_certs = flags.tls_ca,
                                                 .pem_private_key = flags.tls_key,
                                                 .pem_cert_chain = flags.tls_certificate});
  return grpc::CreateCustomChannel(flags.server, credentials, arguments);
}

std::unique_ptr<v1::TextGenerationService::Stub> ConnectStub(const ConnectionFlags& flags) {
  return v1::TextGenerationService::NewStub(Connect(flags));
}

void SetUpCall(const ConnectionFlags& flags, grpc::ClientContext& context) {
  // A file ends with a line break.
  if (const absl::string_view token = absl::StripAsciiWhitespace(flags.token); !token.empty()) {
    context.AddMetadata("authorization", absl::StrCat("Bearer ", token));
  }
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
