// The gRPC listeners: our services, health and reflection.
#ifndef WHIT_SERVER_GRPC_SERVER_H_
#define WHIT_SERVER_GRPC_SERVER_H_

#include <grpcpp/impl/service_type.h>
#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/options.h"

namespace whit {

struct GrpcServer {
  std::unique_ptr<grpc::Server> server;
  std::vector<std::string> addresses;  // with the ports that the system chose
};

// Listens on all addresses, or on none. Health says NOT_SERVING until SetServing. UNAVAILABLE names
// the address that cannot be had and why.
absl::StatusOr<GrpcServer> StartGrpcServer(const ServerOptions& options,
                                           absl::Span<grpc::Service* const> services);

// What grpc.health.v1 says of the server ("") and of the services that generate.
void SetServing(grpc::Server& server, bool serving);

}  // namespace whit

#endif  // WHIT_SERVER_GRPC_SERVER_H_
