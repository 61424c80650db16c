// What a listener asks of those who connect: TLS, a client certificate, a token, headers of
// moderate size.
//
// Headers are checked by the hook that gRPC has for credentials, before a call reaches any service:
// so all services are covered alike, whoever registers them. gRPC's C++ layer has that hook for TLS
// alone and no way to replace a certificate only once it is known to be good, its C layer has both.
#ifndef WHIT_SERVER_SECURITY_SERVER_CREDENTIALS_H_
#define WHIT_SERVER_SECURITY_SERVER_CREDENTIALS_H_

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>

#include <cstddef>
#include <memory>
#include <string>

#include "server/security/authenticator.h"
#include "server/security/tls_certificate.h"

namespace whit {

// Of all headers of a call, each with 32 bytes besides, as HTTP/2 counts them. The API needs few,
// and gateways add some. More are RESOURCE_EXHAUSTED.
inline constexpr size_t kMaxMetadataBytes = 8 << 10;

// For one listening address each. They and what is given outlive the gRPC server; null
// `authenticator`: no token is asked for.
std::shared_ptr<grpc::ServerCredentials> PlaintextCredentials(Authenticator* authenticator);
// `ask_client_certificate`: one of an authority in the certificate's client_ca_pem, or nobody
// connects.
std::shared_ptr<grpc::ServerCredentials> TlsCredentials(TlsCertificateSource& certificates,
                                                        bool ask_client_certificate,
                                                        Authenticator* authenticator);

// The common name of the certificate that a call's client has shown; empty if none.
std::string CertificateName(const grpc::ServerContextBase& context);

}  // namespace whit

#endif  // WHIT_SERVER_SECURITY_SERVER_CREDENTIALS_H_
