// ClientTable: who may call, by bearer tokens, and how much each may ask for at a time. A pure
// value, parsed from --auth-tokens-file.
#ifndef WHIT_SERVER_SECURITY_CLIENT_TABLE_H_
#define WHIT_SERVER_SECURITY_CLIENT_TABLE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace whit {

inline constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

struct ClientLimits {
  int64_t max_requests = kNoLimit;              // that run or wait in the engine
  int64_t max_queued_prompt_tokens = kNoLimit;  // of those that wait
  bool operator==(const ClientLimits&) const = default;
};

using Sha256Digest = std::array<uint8_t, 32>;
Sha256Digest Sha256(std::string_view text);

// In a time that does not depend on where they differ.
bool ConstantTimeEqual(const Sha256Digest& a, const Sha256Digest& b);

class ClientTable {
 public:
  // A client a line; empty lines and those that begin with # do not count:
  //
  //   NAME sha256:HEX [max-requests=N] [max-queued-prompt-tokens=N]
  //
  // HEX is the SHA-256 of the token, so that the file lets nobody in who reads it; tokens are long
  // and random (openssl rand -hex 32), so that nobody finds them by trying. A name may have several
  // lines, with the same limits: tokens old and new, while one takes the other's place.
  //
  // INVALID_ARGUMENT names the line; never its content, which might be a token.
  static absl::StatusOr<ClientTable> Parse(std::string_view text);

  struct Client {
    std::string name;
    Sha256Digest token_digest{};
    ClientLimits limits;
  };
  // Null if nobody has this token. Takes as long whoever it is.
  const Client* FindByToken(std::string_view token) const;
  // Those of a name; no limits if it is not there.
  ClientLimits LimitsOf(std::string_view name) const;
  size_t size() const { return clients_.size(); }

 private:
  std::vector<Client> clients_;
};

}  // namespace whit

#endif  // WHIT_SERVER_SECURITY_CLIENT_TABLE_H_
