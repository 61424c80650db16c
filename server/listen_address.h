// What an address to listen on means: whom it lets in, and why it cannot be had.
#ifndef WHIT_SERVER_LISTEN_ADDRESS_H_
#define WHIT_SERVER_LISTEN_ADDRESS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace whit {

// All are given addresses that CheckListenAddress let pass.

bool IsUnixAddress(std::string_view address);

// The IP addresses that HOST of HOST:PORT stands for, each once. UNAVAILABLE if it cannot be
// resolved.
absl::StatusOr<std::vector<std::string>> HostAddresses(const std::string& address);

// 127.0.0.0/8, ::1 and the former written as IPv6. `ip_address` is one that HostAddresses gave.
bool IsLoopback(std::string_view ip_address);

// Whether processes of this machine alone can connect: a unix socket, or a host that stands for
// loopback addresses alone. UNAVAILABLE as HostAddresses.
absl::StatusOr<bool> IsLocal(const std::string& address);

// Why nobody can listen on it, found out by trying; empty if that works.
std::string WhyCannotListen(const std::string& address);

}  // namespace whit

#endif  // WHIT_SERVER_LISTEN_ADDRESS_H_
