// whit health
#include <grpcpp/client_context.h>

#include <cstdio>
#include <memory>
#include <string>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/cli/commands.h"
#include "server/cli/json_output.h"

namespace whit {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr absl::Duration kDefaultTimeout = absl::Seconds(5);

struct HealthFlags {
  std::string service;
  absl::Duration wait = absl::ZeroDuration();
};

int Show(const HealthCheckResponse& response, const CommandContext& context) {
  if (context.flags.json) {
    PrintJson(ToJson(response));
  } else {
    std::printf("%s\n", HealthCheckResponse::ServingStatus_Name(response.status()).c_str());
  }
  return response.status() == HealthCheckResponse::SERVING ? kExitOk : kExitFailed;
}

int Check(const HealthCheckRequest& request, const CommandContext& context) {
  grpc::ClientContext rpc;
  ConnectionFlags flags = context.flags;
  if (flags.timeout == absl::InfiniteDuration()) flags.timeout = kDefaultTimeout;
  SetUpCall(flags, rpc);
  HealthCheckResponse response;
  const grpc::Status status = Health::NewStub(Connect(flags))->Check(&rpc, request, &response);
  if (!status.ok()) return ReportFailure(status, flags);
  return Show(response, context);
}

// Watches until the server serves or the time is over. The server may not be there yet, or come
// back.
int Wait(const HealthCheckRequest& request, absl::Duration wait, const CommandContext& context) {
  const absl::Time deadline = absl::Now() + wait;
  const auto stub = Health::NewStub(Connect(context.flags));
  HealthCheckResponse response;
  grpc::Status status;
  do {
    grpc::ClientContext rpc;
    SetUpCall(context.flags, rpc);
    rpc.set_wait_for_ready(true);
    rpc.set_deadline(absl::ToChronoTime(deadline));
    const auto reader = stub->Watch(&rpc, request);
    while (reader->Read(&response)) {
      if (response.status() == HealthCheckResponse::SERVING) return Show(response, context);
    }
    status = reader->Finish();
  } while (status.error_code() == grpc::StatusCode::UNAVAILABLE && absl::Now() < deadline);
  return ReportFailure(status, context.flags);
}

}  // namespace

void AddHealth(CLI::App& app, CommandContext context) {
  CLI::App* const command =
      app.add_subcommand("health", "Exit with 0 if the server is ready to serve, with 1 if not");
  const auto flags = std::make_shared<HealthFlags>();
  command->add_option("--service", flags->service,
                      "ask for this service instead of the server as a whole");
  AddDurationFlag(*command, "--wait", flags->wait,
                  "wait this long for the server to become ready, such as 60s");
  AddConnectionFlags(*command, context.flags);
  command->callback([=] {
    context.chosen = [=] {
      HealthCheckRequest request;
      request.set_service(flags->service);
      return flags->wait > absl::ZeroDuration() ? Wait(request, flags->wait, context)
                                                : Check(request, context);
    };
  });
}

}  // namespace whit
