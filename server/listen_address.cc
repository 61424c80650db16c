#include "server/listen_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace whit {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";

// Brackets of IPv6 removed.
std::pair<std::string, std::string> SplitHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  return {host, address.substr(colon + 1)};
}

// Calls `visit` with each socket address that HOST:PORT stands for; returns what getaddrinfo does.
int ForEachSocketAddress(const std::string& address,
                         const std::function<void(const addrinfo&)>& visit) {
  const auto [host, port] = SplitHostPort(address);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) return error;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) visit(*one);
  freeaddrinfo(found);
  return 0;
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

}  // namespace

bool IsUnixAddress(std::string_view address) {
  return address.substr(0, kUnixPrefix.size()) == kUnixPrefix;
}

absl::StatusOr<std::vector<std::string>> HostAddresses(const std::string& address) {
  std::vector<std::string> addresses;
  const int error = ForEachSocketAddress(address, [&](const addrinfo& one) {
    char text[NI_MAXHOST];
    if (getnameinfo(one.ai_addr, one.ai_addrlen, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) !=
        0) {
      return;
    }
    if (std::find(addresses.begin(), addresses.end(), text) == addresses.end()) {
      addresses.emplace_back(text);
    }
  });
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot resolve the host of ", address, ": ", gai_strerror(error)));
  }
  return addresses;
}

bool IsLoopback(std::string_view ip_address) {
  const std::string text(ip_address);
  in_addr ipv4{};
  if (inet_pton(AF_INET, text.c_str(), &ipv4) == 1) return (ntohl(ipv4.s_addr) >> 24) == 127;
  in6_addr ipv6{};
  if (inet_pton(AF_INET6, text.c_str(), &ipv6) != 1) return false;
  return IN6_IS_ADDR_LOOPBACK(&ipv6) || (IN6_IS_ADDR_V4MAPPED(&ipv6) && ipv6.s6_addr[12] == 127);
}

absl::StatusOr<bool> IsLocal(const std::string& address) {
  if (IsUnixAddress(address)) return true;
  const absl::StatusOr<std::vector<std::string>> hosts = HostAddresses(address);
  if (!hosts.ok()) return hosts.status();
  return !hosts->empty() && std::all_of(hosts->begin(), hosts->end(), IsLoopback);
}

std::string WhyCannotListen(const std::string& address) {
  if (IsUnixAddress(address)) {
    const std::string path = address.substr(kUnixPrefix.size());
    sockaddr_un unix_address{};
    unix_address.sun_family = AF_UNIX;
    path.copy(unix_address.sun_path, sizeof(unix_address.sun_path) - 1);
    const int error =
        TryBind(reinterpret_cast<const sockaddr*>(&unix_address), sizeof(unix_address));
    if (error == 0) unlink(path.c_str());
    return error == 0 ? "" : std::strerror(error);
  }
  std::string reason;
  const int error = ForEachSocketAddress(address, [&](const addrinfo& one) {
    if (!reason.empty()) return;
    if (const int bind_error = TryBind(one.ai_addr, one.ai_addrlen)) {
      reason = std::strerror(bind_error);
    }
  });
  return error == 0 ? reason : gai_strerror(error);
}

}  // namespace whit
