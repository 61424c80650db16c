#include "server/security/client_table.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace whit {
namespace {

constexpr size_t kMaxNameBytes = 64;
// Each call is compared with all.
constexpr size_t kMaxClients = 1000;
constexpr absl::string_view kDigestPrefix = "sha256:";

bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' ||
                  c == '-';
         });
}

std::optional<Sha256Digest> ParseDigest(absl::string_view text) {
  Sha256Digest digest;
  if (text.size() != kDigestPrefix.size() + 2 * digest.size() ||
      text.substr(0, kDigestPrefix.size()) != kDigestPrefix) {
    return std::nullopt;
  }
  const absl::string_view hex = text.substr(kDigestPrefix.size());
  if (!std::all_of(hex.begin(), hex.end(),
                   [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); })) {
    return std::nullopt;
  }
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), digest.begin());
  return digest;
}

// A count of at least 1.
std::optional<int64_t> ParseCount(absl::string_view text) {
  int64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count < 1) return std::nullopt;
  return count;
}

absl::Status ParseLimit(absl::string_view field, ClientLimits& limits) {
  const std::pair<absl::string_view, absl::string_view> setting =
      absl::StrSplit(field, absl::MaxSplits('=', 1));
  int64_t* limit = nullptr;
  if (setting.first == "max-requests") limit = &limits.max_requests;
  if (setting.first == "max-queued-prompt-tokens") limit = &limits.max_queued_prompt_tokens;
  if (limit == nullptr) {
    return absl::InvalidArgumentError(
        "after the token's digest may stand max-requests=N and max-queued-prompt-tokens=N alone");
  }
  const std::optional<int64_t> count = ParseCount(setting.second);
  if (!count) {
    return absl::InvalidArgumentError(
        absl::StrCat(setting.first, " is no whole number of at least 1"));
  }
  if (*limit != kNoLimit) {
    return absl::InvalidArgumentError(absl::StrCat(setting.first, " is given twice"));
  }
  *limit = *count;
  return absl::OkStatus();
}

absl::StatusOr<ClientTable::Client> ParseClient(absl::string_view line) {
  const std::vector<absl::string_view> fields =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (!IsName(fields[0])) {
    return absl::InvalidArgumentError(
        absl::StrCat("a client's name has 1 to ", kMaxNameBytes,
                     " letters, digits, dots, dashes and underscores"));
  }
  ClientTable::Client client{.name = std::string(fields[0]), .limits = {}};
  const std::optional<Sha256Digest> digest =
      fields.size() > 1 ? ParseDigest(fields[1]) : std::nullopt;
  if (!digest) {
    return absl::InvalidArgumentError(
        "after the client's name must stand sha256: and 64 hexadecimal digits, as from "
        "printf %s \"$TOKEN\" | sha256sum");
  }
  client.token_digest = *digest;
  for (size_t i = 2; i < fields.size(); ++i) {
    if (absl::Status status = ParseLimit(fields[i], client.limits); !status.ok()) return status;
  }
  return client;
}

// Whether it goes with those before it.
absl::Status CheckAgainst(const std::vector<ClientTable::Client>& before,
                          const ClientTable::Client& client) {
  for (const ClientTable::Client& other : before) {
    if (other.token_digest == client.token_digest) {
      return absl::InvalidArgumentError(
          absl::StrCat("client ", other.name, " above has the same token"));
    }
    if (other.name == client.name && other.limits != client.limits) {
      return absl::InvalidArgumentError(
          absl::StrCat("client ", client.name, " has other limits above"));
    }
  }
  if (before.size() >= kMaxClients) {
    return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxClients, " tokens"));
  }
  return absl::OkStatus();
}

}  // namespace

Sha256Digest Sha256(std::string_view text) {
  Sha256Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

bool ConstantTimeEqual(const Sha256Digest& a, const Sha256Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::StatusOr<ClientTable> ClientTable::Parse(std::string_view text) {
  ClientTable table;
  int line_number = 0;
  for (const absl::string_view raw :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++line_number;
    const absl::string_view line = absl::StripAsciiWhitespace(raw);
    if (line.empty() || line.front() == '#') continue;
    absl::StatusOr<Client> client = ParseClient(line);
    absl::Status status = client.status();
    if (status.ok()) status = CheckAgainst(table.clients_, *client);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", line_number, ": ", status.message()));
    }
    table.clients_.push_back(*std::move(client));
  }
  if (table.clients_.empty()) return absl::InvalidArgumentError("there is no client in it");
  return table;
}

const ClientTable::Client* ClientTable::FindByToken(std::string_view token) const {
  const Sha256Digest digest = Sha256(token);
  const Client* found = nullptr;
  for (const Client& client : clients_) {
    if (ConstantTimeEqual(client.token_digest, digest)) found = &client;
  }
  return found;
}

ClientLimits ClientTable::LimitsOf(std::string_view name) const {
  const auto client = std::find_if(clients_.begin(), clients_.end(),
                                   [&](const Client& one) { return one.name == name; });
  return client == clients_.end() ? ClientLimits{} : client->limits;
}

}  // namespace whit
