#include "server/flag_values.h"

#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace whit {
namespace {

struct ByteUnit {
  std::string_view name;  // upper case
  double bytes;
};

constexpr std::array<ByteUnit, 14> kByteUnits = {{{"", 1},
                                                  {"B", 1},
                                                  {"K", 0x1p10},
                                                  {"KIB", 0x1p10},
                                                  {"KB", 1e3},
                                                  {"M", 0x1p20},
                                                  {"MIB", 0x1p20},
                                                  {"MB", 1e6},
                                                  {"G", 0x1p30},
                                                  {"GIB", 0x1p30},
                                                  {"GB", 1e9},
                                                  {"T", 0x1p40},
                                                  {"TIB", 0x1p40},
                                                  {"TB", 1e12}}};

// A decimal number without sign at the start of `text`, which is advanced past it.
bool ConsumeNumber(std::string_view& text, double* number) {
  if (text.empty() || !absl::ascii_isdigit(text.front())) return false;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), *number, std::chars_format::fixed);
  if (error != std::errc()) return false;
  text.remove_prefix(end - text.data());
  return true;
}

bool IsPort(std::string_view text) {
  int port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port >= 0 && port <= 65535;
}

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(std::string_view text) {
  constexpr double kMaxBytes = 0x1p62;
  std::string_view rest = text;
  double number = 0;
  if (ConsumeNumber(rest, &number)) {
    if (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
    const std::string suffix = absl::AsciiStrToUpper(std::string(rest));
    for (const ByteUnit& unit : kByteUnits) {
      if (unit.name != suffix) continue;
      const double bytes = std::floor(number * unit.bytes);
      if (bytes > kMaxBytes) {
        return absl::InvalidArgumentError(
            absl::StrFormat("'%s' is more than 4 EiB", std::string(text)));
      }
      return static_cast<uint64_t>(bytes);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is no byte size; write a number and a unit, such as 24M, 2G or 1.5GiB",
                      std::string(text)));
}

std::string FormatByteSize(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return absl::StrFormat("%d B", bytes);
  double size = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (size >= 1024 && unit + 1 < kUnits.size()) {
    size /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", size < 100 ? 1 : 0, size, kUnits[unit]);
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  absl::Duration duration;
  std::string_view rest = text;
  double seconds = 0;
  if (ConsumeNumber(rest, &seconds) && rest.empty()) {
    duration = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(std::string(text), &duration)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "'%s' is no duration; write for example 500ms, 30s or 1m30s", std::string(text)));
  }
  if (duration < absl::ZeroDuration() || duration > absl::Hours(24 * 365)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' is not within 0 and one year", std::string(text)));
  }
  return duration;
}

absl::Status CheckListenAddress(std::string_view address) {
  constexpr std::string_view kUnix = "unix:";
  if (address.substr(0, kUnix.size()) == kUnix) {
    // sockaddr_un's path holds 107 bytes and a terminator.
    const size_t path_bytes = address.size() - kUnix.size();
    if (path_bytes >= 1 && path_bytes <= 107) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s': the path of a unix socket has %d bytes, but must have 1 to 107",
                        std::string(address), path_bytes));
  }
  const size_t colon = address.rfind(':');
  const std::string_view host = address.substr(0, colon);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (colon == std::string_view::npos || host.empty() || !IsPort(address.substr(colon + 1)) ||
      (!bracketed && host.find_first_of(":[]") != std::string_view::npos)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' is no address; write HOST:PORT with a port in [0, 65535], "
                        "[IPV6]:PORT or unix:PATH",
                        std::string(address)));
  }
  return absl::OkStatus();
}

}  // namespace whit
