#include "server/security/tls_certificate.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/small_file.h"

namespace whit {
namespace {

struct OpenSslDeleter {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <class T>
using OpenSslPtr = std::unique_ptr<T, OpenSslDeleter>;

// OpenSSL would ask for a passphrase on the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

OpenSslPtr<BIO> Reader(const std::string& pem) {
  return OpenSslPtr<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

absl::StatusOr<std::vector<OpenSslPtr<X509>>> ParseCertificates(const std::string& path,
                                                                const std::string& pem) {
  std::vector<OpenSslPtr<X509>> certificates;
  const OpenSslPtr<BIO> reader = Reader(pem);
  while (X509* const one = PEM_read_bio_X509(reader.get(), nullptr, NoPassphrase, nullptr)) {
    certificates.emplace_back(one);
  }
  // It ends where no further block begins, or at one that is broken.
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (certificates.empty() || !at_end) {
    return absl::InvalidArgumentError(
        absl::StrCat(path,
                     certificates.empty() ? " holds no certificate in PEM"
                                          : " holds something broken after its certificate ",
                     certificates.empty() ? "" : absl::StrCat(certificates.size())));
  }
  return certificates;
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm fields{};
  if (ASN1_TIME_to_tm(time, &fields) != 1) return absl::InfinitePast();
  return absl::FromTM(fields, absl::UTCTimeZone());
}

std::string Subject(const X509& certificate) {
  const OpenSslPtr<BIO> text(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(text.get(), X509_get_subject_name(&certificate), 0, XN_FLAG_RFC2253);
  char* data = nullptr;
  const long bytes = BIO_get_mem_data(text.get(), &data);
  return std::string(data, bytes);
}

absl::Status CheckValidity(const std::string& path, const X509& certificate, absl::Time now) {
  const auto error = [&](const char* what, absl::Time when) {
    return absl::InvalidArgumentError(
        absl::StrCat("the certificate of ", Subject(certificate), " in ", path, " ", what, " ",
                     absl::FormatTime(absl::RFC3339_sec, when, absl::UTCTimeZone())));
  };
  const absl::Time not_before = ToTime(X509_get0_notBefore(&certificate));
  const absl::Time not_after = ToTime(X509_get0_notAfter(&certificate));
  if (now > not_after) return error("expired at", not_after);
  if (now < not_before) return error("is not valid before", not_before);
  return absl::OkStatus();
}

absl::Status CheckKey(const TlsFiles& files, const std::string& pem, const X509& certificate) {
  const OpenSslPtr<BIO> reader = Reader(pem);
  const OpenSslPtr<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(reader.get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(files.key,
                     " holds no private key in PEM that can be read without a "
                     "passphrase"));
  }
  const bool matches = X509_check_private_key(&certificate, key.get()) == 1;
  ERR_clear_error();
  if (matches) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the key in ", files.key, " is not that of the first certificate in ", files.certificate));
}

}  // namespace

absl::StatusOr<TlsCertificate> LoadTlsCertificate(const TlsFiles& files, absl::Time now) {
  TlsCertificate loaded;
  for (const auto& [path, pem] : {std::pair{&files.certificate, &loaded.certificate_pem},
                                  std::pair{&files.key, &loaded.key_pem},
                                  std::pair{&files.client_ca, &loaded.client_ca_pem}}) {
    if (path->empty()) continue;
    absl::StatusOr<std::string> content = ReadSmallFile(*path);
    if (!content.ok()) return content.status();
    *pem = *std::move(content);
  }
  const absl::StatusOr<std::vector<OpenSslPtr<X509>>> chain =
      ParseCertificates(files.certificate, loaded.certificate_pem);
  if (!chain.ok()) return chain.status();
  const X509& certificate = *chain->front();
  if (absl::Status status = CheckKey(files, loaded.key_pem, certificate); !status.ok()) {
    return status;
  }
  for (const OpenSslPtr<X509>& one : *chain) {
    if (absl::Status status = CheckValidity(files.certificate, *one, now); !status.ok()) {
      return status;
    }
  }
  if (!files.client_ca.empty()) {
    const auto authorities = ParseCertificates(files.client_ca, loaded.client_ca_pem);
    if (!authorities.ok()) return authorities.status();
  }
  loaded.subject = Subject(certificate);
  loaded.not_after = ToTime(X509_get0_notAfter(&certificate));
  return loaded;
}

absl::StatusOr<std::unique_ptr<TlsCertificateSource>> TlsCertificateSource::Create(
    const TlsFiles& files, const Logger& logger,
    std::function<void(const TlsCertificate&)> on_loaded) {
  std::unique_ptr<TlsCertificateSource> source(
      new TlsCertificateSource(files, logger, std::move(on_loaded)));
  absl::MutexLock lock(&source->mutex_);
  if (absl::Status status = source->Load(absl::Now()); !status.ok()) return status;
  return source;
}

TlsCertificateSource::TlsCertificateSource(const TlsFiles& files, const Logger& logger,
                                           std::function<void(const TlsCertificate&)> on_loaded)
    : files_(files),
      logger_(logger),
      on_loaded_(std::move(on_loaded)),
      watched_(files.client_ca.empty()
                   ? std::vector<std::string>{files.certificate, files.key}
                   : std::vector<std::string>{files.certificate, files.key, files.client_ca}) {}

absl::Status TlsCertificateSource::Load(absl::Time now) {
  absl::StatusOr<TlsCertificate> loaded = LoadTlsCertificate(files_, now);
  if (!loaded.ok()) return loaded.status();
  current_ = std::make_shared<const TlsCertificate>(*std::move(loaded));
  ++generation_;
  logger_.Info("TLS certificate",
               {{"file", files_.certificate},
                {"subject", current_->subject},
                {"not_after",
                 absl::FormatTime(absl::RFC3339_sec, current_->not_after, absl::UTCTimeZone())}});
  on_loaded_(*current_);
  return absl::OkStatus();
}

std::shared_ptr<const TlsCertificate> TlsCertificateSource::NewerThan(uint64_t& generation) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (watched_.Changed(now)) {
    if (const absl::Status status = Load(now); !status.ok()) {
      logger_.Error("TLS certificate not replaced; the last good one stays in use",
                    {{"error", std::string(status.message())}});
    }
  }
  if (generation == generation_) return nullptr;
  generation = generation_;
  return current_;
}

}  // namespace whit
