// The gRPC listeners: our services, health and, where asked for, reflection and channelz.
#ifndef WHIT_SERVER_GRPC_SERVER_H_
#define WHIT_SERVER_GRPC_SERVER_H_

#include <grpcpp/impl/service_type.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/options.h"
#include "server/security/authenticator.h"
#include "server/security/tls_certificate.h"

namespace whit {

struct GrpcServer {
  std::vector<std::shared_ptr<grpc::ServerCredentials>> credentials;  // outlive the server
  std::unique_ptr<grpc::Server> server;
  // Of --listen, then of --listen-plaintext, with the ports that the system chose.
  std::vector<std::string> addresses;
  std::vector<std::string> plaintext_addresses;
};

// Who may connect and call. Null: TLS, tokens are not asked for. Outlives the server.
struct ServerSecurity {
  TlsCertificateSource* certificates = nullptr;
  Authenticator* authenticator = nullptr;
};

// Listens on all addresses, or on none. Health says NOT_SERVING until SetServing. UNAVAILABLE names
// the address that cannot be had and why.
absl::StatusOr<GrpcServer> StartGrpcServer(const ServerOptions& options,
                                           const ServerSecurity& security,
                                           absl::Span<grpc::Service* const> services);

// What grpc.health.v1 says of the server ("") and of the services that generate.
void SetServing(grpc::Server& server, bool serving);

}  // namespace whit

#endif  // WHIT_SERVER_GRPC_SERVER_H_
