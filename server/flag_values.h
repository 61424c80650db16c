// The values that flags of whitd and whit accept: byte sizes, durations, addresses.
#ifndef WHIT_SERVER_FLAG_VALUES_H_
#define WHIT_SERVER_FLAG_VALUES_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace whit {

// "4096", "24M", "1.5GiB", "2GB": K, M, G, T and KiB, MiB, … are powers of 1,024; KB, MB, … powers
// of 1,000. Case does not matter. INVALID_ARGUMENT names the value.
absl::StatusOr<uint64_t> ParseByteSize(std::string_view text);

// "1.5 GiB": for people; the exact count if it is below 1 KiB.
std::string FormatByteSize(uint64_t bytes);

// "500ms", "30s", "1m30s", or a plain number of seconds; not negative, finite.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);

// "HOST:PORT", "[IPV6]:PORT" or "unix:PATH". Port 0 lets the system choose one.
absl::Status CheckListenAddress(std::string_view address);

}  // namespace whit

#endif  // WHIT_SERVER_FLAG_VALUES_H_
