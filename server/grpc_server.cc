#include "server/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"
#include "whit/v1/text_generation.grpc.pb.h"

namespace whit {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";

// "HOST", "PORT" of an address that CheckListenAddress let pass; brackets of IPv6 removed.
std::pair<std::string, std::string> SplitHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  return {host, address.substr(colon + 1)};
}

// errno of binding to it; 0 if that works.
int TryBind(const sockaddr* address, socklen_t length) {
  const int socket_fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return errno;
  const int reuse = 1;
  setsockopt(socket_fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
  int error = bind(socket_fd, address, length) == 0 ? 0 : errno;
  if (error == 0 && listen(socket_fd, 1) != 0) error = errno;
  close(socket_fd);
  return error;
}

// gRPC does not say which address it could not bind, nor why: trying again tells. Empty if this one
// can be had.
std::string WhyNot(const std::string& address) {
  if (std::string_view(address).substr(0, kUnixPrefix.size()) == kUnixPrefix) {
    const std::string path = address.substr(kUnixPrefix.size());
    sockaddr_un unix_address{};
    unix_address.sun_family = AF_UNIX;
    path.copy(unix_address.sun_path, sizeof(unix_address.sun_path) - 1);
    const int error =
        TryBind(reinterpret_cast<const sockaddr*>(&unix_address), sizeof(unix_address));
    if (error == 0) unlink(path.c_str());
    return error == 0 ? "" : std::strerror(error);
  }
  const auto [host, port] = SplitHostPort(address);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return gai_strerror(error);
  }
  std::string reason;
  for (const addrinfo* one = found; one != nullptr && reason.empty(); one = one->ai_next) {
    if (const int error = TryBind(one->ai_addr, one->ai_addrlen)) reason = std::strerror(error);
  }
  freeaddrinfo(found);
  return reason;
}

absl::Status ListenError(const std::vector<std::string>& addresses) {
  for (const std::string& address : addresses) {
    if (const std::string reason = WhyNot(address); !reason.empty()) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", reason));
    }
  }
  return absl::UnavailableError(
      "cannot listen: gRPC refused an address, but each can be bound now");
}

}  // namespace

absl::StatusOr<GrpcServer> StartGrpcServer(const ServerOptions& options,
                                           absl::Span<grpc::Service* const> services) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  // gRPC's own health service brings no descriptor for reflection to show: this links ours.
  grpc::health::v1::HealthCheckRequest::descriptor();
  grpc::ServerBuilder builder;
  for (grpc::Service* const service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  // Two servers must not share a port unknowingly.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A client that has vanished without a word is found out; clients may do the same.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);

  std::vector<int> ports(options.listen.size(), 0);
  for (size_t i = 0; i < options.listen.size(); ++i) {
    builder.AddListeningPort(options.listen[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  GrpcServer result{.server = builder.BuildAndStart(), .addresses = {}};
  if (result.server == nullptr) return ListenError(options.listen);
  SetServing(*result.server, false);

  for (size_t i = 0; i < options.listen.size(); ++i) {
    const std::string& address = options.listen[i];
    const bool is_unix = std::string_view(address).substr(0, kUnixPrefix.size()) == kUnixPrefix;
    result.addresses.push_back(
        is_unix ? address : absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[i]));
  }
  return result;
}

void SetServing(grpc::Server& server, bool serving) {
  grpc::HealthCheckServiceInterface* const health = server.GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(v1::TextGenerationService::service_full_name(), serving);
  health->SetServingStatus(::vllm::grpc::engine::VllmEngine::service_full_name(), serving);
}

}  // namespace whit
