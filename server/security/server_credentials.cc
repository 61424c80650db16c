#include "server/security/server_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/grpc_security_constants.h>

#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace whit {
namespace {

constexpr size_t kHeaderOverheadBytes = 32;

std::string_view ToView(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

absl::Status CheckHeaders(absl::Span<const grpc_metadata> headers, Authenticator* authenticator) {
  size_t bytes = 0;
  std::string_view method_path;
  std::vector<std::string_view> authorization;
  for (const grpc_metadata& header : headers) {
    const std::string_view name = ToView(header.key), value = ToView(header.value);
    bytes += name.size() + value.size() + kHeaderOverheadBytes;
    if (name == ":path") method_path = value;
    if (name == "authorization") authorization.push_back(value);
  }
  if (bytes > kMaxMetadataBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the call has ", bytes, " bytes of metadata; at most ", kMaxMetadataBytes, " are taken"));
  }
  if (authenticator == nullptr) return absl::OkStatus();
  return authenticator->Check(method_path, authorization);
}

// gRPC calls this for each call, on its own threads. The context that it gives is not the call's
// but the connection's, so what is found out cannot be left there.
void CheckCall(void* authenticator, grpc_auth_context*, const grpc_metadata* headers,
               size_t num_headers, grpc_process_auth_metadata_done_cb done, void* user_data) {
  const absl::Status status = CheckHeaders(absl::MakeConstSpan(headers, num_headers),
                                           static_cast<Authenticator*>(authenticator));
  done(user_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.code()),
       std::string(status.message()).c_str());
}

class ListenerCredentials final : public grpc::ServerCredentials {
 public:
  explicit ListenerCredentials(Authenticator* authenticator)
      : credentials_(grpc_insecure_server_credentials_create()) {
    CheckCallsWith(authenticator);
  }
  ListenerCredentials(TlsCertificateSource& certificates, bool ask_client_certificate,
                      Authenticator* authenticator)
      : certificates_(&certificates),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                ask_client_certificate ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                       : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
                FetchCertificate, this))) {
    CheckCallsWith(authenticator);
  }
  ~ListenerCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
  }  // the authenticator is it

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  void CheckCallsWith(Authenticator* authenticator) {
    grpc_server_credentials_set_auth_metadata_processor(
        credentials_, {.process = CheckCall, .destroy = [](void*) {}, .state = authenticator});
  }

  // gRPC calls this before each handshake, for one of a listener's connections at a time, and
  // copies what it gets.
  static grpc_ssl_certificate_config_reload_status FetchCertificate(
      void* listener, grpc_ssl_server_certificate_config** config) {
    auto* const self = static_cast<ListenerCredentials*>(listener);
    const std::shared_ptr<const TlsCertificate> newer =
        self->certificates_->NewerThan(self->generation_);
    if (newer == nullptr) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {.private_key = newer->key_pem.c_str(),
                                             .cert_chain = newer->certificate_pem.c_str()};
    // gRPC wants authorities, also where no client is asked for a certificate.
    const std::string& authorities =
        newer->client_ca_pem.empty() ? newer->certificate_pem : newer->client_ca_pem;
    *config = grpc_ssl_server_certificate_config_create(authorities.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  TlsCertificateSource* const certificates_ = nullptr;
  uint64_t generation_ = 0;  // of the certificate that this listener has
  grpc_server_credentials* const credentials_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> PlaintextCredentials(Authenticator* authenticator) {
  return std::make_shared<ListenerCredentials>(authenticator);
}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials(TlsCertificateSource& certificates,
                                                        bool ask_client_certificate,
                                                        Authenticator* authenticator) {
  return std::make_shared<ListenerCredentials>(certificates, ask_client_certificate, authenticator);
}

std::string CertificateName(const grpc::ServerContextBase& context) {
  const std::vector<grpc::string_ref> names =
      context.auth_context()->FindPropertyValues(GRPC_X509_CN_PROPERTY_NAME);
  return names.empty() ? "" : std::string(names.front().data(), names.front().size());
}

}  // namespace whit
