// The server's certificate: read, checked, and read again when its files change.
#ifndef WHIT_SERVER_SECURITY_TLS_CERTIFICATE_H_
#define WHIT_SERVER_SECURITY_TLS_CERTIFICATE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/logging.h"
#include "server/security/watched_files.h"

namespace whit {

// Paths of PEM files.
struct TlsFiles {
  std::string certificate;  // the server's, then those that lead to its authority
  std::string key;
  std::string client_ca;  // whose clients may connect; empty: any may
};

// What was in them.
struct TlsCertificate {
  std::string certificate_pem, key_pem, client_ca_pem;
  std::string subject;  // "CN=whit.example"
  absl::Time not_after;
};

// Errors name the file. INVALID_ARGUMENT: it is no PEM, the key is not the certificate's or needs a
// passphrase, a certificate of the chain is not valid at `now`.
absl::StatusOr<TlsCertificate> LoadTlsCertificate(const TlsFiles& files, absl::Time now);

// Threads: any may call.
class TlsCertificateSource {
 public:
  // `on_loaded` is called with each certificate that is taken into use, the first one too.
  // `logger` outlives this.
  static absl::StatusOr<std::unique_ptr<TlsCertificateSource>> Create(
      const TlsFiles& files, const Logger& logger,
      std::function<void(const TlsCertificate&)> on_loaded);

  // The certificate, if it is another than the one of this generation, which then becomes its own;
  // null if not. The files are looked at again if that was a second or more ago; what cannot be
  // used is logged, and the last good certificate stays. Generations begin at 1.
  std::shared_ptr<const TlsCertificate> NewerThan(uint64_t& generation);

 private:
  TlsCertificateSource(const TlsFiles& files, const Logger& logger,
                       std::function<void(const TlsCertificate&)> on_loaded);
  absl::Status Load(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const TlsFiles files_;
  const Logger& logger_;
  const std::function<void(const TlsCertificate&)> on_loaded_;

  absl::Mutex mutex_;
  WatchedFiles watched_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const TlsCertificate> current_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace whit

#endif  // WHIT_SERVER_SECURITY_TLS_CERTIFICATE_H_
