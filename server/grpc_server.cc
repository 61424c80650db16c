#include "server/grpc_server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <deque>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "server/listen_address.h"
#include "server/security/server_credentials.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"
#include "whit/v1/text_generation.grpc.pb.h"

namespace whit {
namespace {

// gRPC reads a message to its end before it finds it too large. Once all that it holds of the
// network comes to this, it ends calls with RESOURCE_EXHAUSTED until it holds less; it does not
// choose them by size. Whoever has no token cannot bring it there.
constexpr size_t kMinBufferBytes = 64 << 20, kBufferedMessages = 8;
// Of all headers of a call. Whoever sends more, gRPC loses the thread of, and ends the whole
// connection at its next call: so a gateway's own bound should be lower. Up to here a call alone is
// refused (kMaxMetadataBytes).
constexpr int kMaxTransportMetadataBytes = 64 << 10;
// A client that has vanished without a word is found out; clients may do the same, with or without
// calls under way. One that pings more often is sent away at its third offence.
constexpr int kKeepaliveTimeMs = 60'000, kKeepaliveTimeoutMs = 20'000;
constexpr int kMinPingIntervalMs = 10'000, kMaxPingStrikes = 2;
// Whoever connects and says nothing holds a socket no longer than this.
constexpr int kHandshakeTimeoutMs = 10'000;

absl::Status ListenError(const std::vector<std::string>& addresses) {
  for (const std::string& address : addresses) {
    if (const std::string reason = WhyCannotListen(address); !reason.empty()) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", reason));
    }
  }
  return absl::UnavailableError(
      "cannot listen: gRPC refused an address, but each can be bound now");
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  grpc::ResourceQuota memory("whitd");
  memory.Resize(std::max(kMinBufferBytes, kBufferedMessages * options.max_message_bytes));
  builder.SetResourceQuota(memory);
  // A compressed message may be a thousand times as large as what is sent.
  for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxTransportMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, kMaxPingStrikes);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
}

// Whoever links reflection has it in every server; channelz stays once it was asked for.
class ChosenPlugins final : public grpc::ServerBuilderOption {
 public:
  ChosenPlugins(bool reflection, bool channelz) : reflection_(reflection), channelz_(channelz) {}

  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins, [this](const std::unique_ptr<grpc::ServerBuilderPlugin>& plugin) {
      return (!reflection_ && plugin->name() == "proto_server_reflection") ||
             (!channelz_ && plugin->name() == "channelz_service");
    });
  }

 private:
  const bool reflection_, channelz_;
};

// Addresses that a server will listen on, and the ports that the system then chooses.
class Listeners {
 public:
  void Add(const std::string& address, const std::shared_ptr<grpc::ServerCredentials>& credentials,
           grpc::ServerBuilder& builder) {
    // A deque: gRPC writes the port when the server starts.
    listeners_.push_back({address, 0});
    builder.AddListeningPort(address, credentials, &listeners_.back().port);
  }

  // Once the server has started.
  std::vector<std::string> Addresses() const {
    std::vector<std::string> addresses;
    for (const auto& [address, port] : listeners_) {
      addresses.push_back(IsUnixAddress(address)
                              ? address
                              : absl::StrCat(address.substr(0, address.rfind(':')), ":", port));
    }
    return addresses;
  }

 private:
  struct Listener {
    std::string address;
    int port;
  };
  std::deque<Listener> listeners_;
};

}  // namespace

absl::StatusOr<GrpcServer> StartGrpcServer(const ServerOptions& options,
                                           const ServerSecurity& security,
                                           absl::Span<grpc::Service* const> services) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  // gRPC's own health service brings no descriptor for reflection to show: this links ours.
  grpc::health::v1::HealthCheckRequest::descriptor();
  if (options.channelz) grpc::channelz::experimental::InitChannelzService();
  grpc::ServerBuilder builder;
  builder.SetOption(std::make_unique<ChosenPlugins>(options.reflection, options.channelz));
  for (grpc::Service* const service : services) builder.RegisterService(service);
  SetLimits(options, builder);
  // Two servers must not share a port unknowingly.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, options.channelz ? 1 : 0);

  GrpcServer result;
  Listeners listeners, plaintext_listeners;
  for (const std::string& address : options.listen) {
    result.credentials.push_back(security.certificates == nullptr
                                     ? PlaintextCredentials(security.authenticator)
                                     : TlsCredentials(*security.certificates,
                                                      !options.tls.client_ca.empty(),
                                                      security.authenticator));
    listeners.Add(address, result.credentials.back(), builder);
  }
  for (const std::string& address : options.listen_plaintext) {
    result.credentials.push_back(PlaintextCredentials(/*authenticator=*/nullptr));
    plaintext_listeners.Add(address, result.credentials.back(), builder);
  }
  result.server = builder.BuildAndStart();
  if (result.server == nullptr) {
    std::vector<std::string> addresses = options.listen;
    addresses.insert(addresses.end(), options.listen_plaintext.begin(),
                     options.listen_plaintext.end());
    return ListenError(addresses);
  }
  SetServing(*result.server, false);
  result.addresses = listeners.Addresses();
  result.plaintext_addresses = plaintext_listeners.Addresses();
  return result;
}

void SetServing(grpc::Server& server, bool serving) {
  grpc::HealthCheckServiceInterface* const health = server.GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(v1::TextGenerationService::service_full_name(), serving);
  health->SetServingStatus(::vllm::grpc::engine::VllmEngine::service_full_name(), serving);
}

}  // namespace whit
