#include "server/trace_context.h"

#include <algorithm>
#include <cstddef>

namespace whit {
namespace {

constexpr size_t kVersionDigits = 2, kTraceIdDigits = 32, kParentIdDigits = 16, kFlagsDigits = 2;
// With a dash between any two.
constexpr size_t kHeaderBytes =
    kVersionDigits + kTraceIdDigits + kParentIdDigits + kFlagsDigits + 3;

// Upper case is not allowed.
bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsId(std::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != std::string_view::npos;
}

// The next field, of `digits` bytes, and the dash after it if more follows; empty if that is not
// there.
std::string_view TakeField(std::string_view& rest, size_t digits) {
  const std::string_view field = rest.substr(0, digits);
  rest.remove_prefix(field.size());
  if (rest.empty()) return field;
  if (rest.front() != '-') return {};
  rest.remove_prefix(1);
  return field;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view header) {
  if (header.size() < kHeaderBytes) return std::nullopt;
  std::string_view rest = header;
  const std::string_view version = TakeField(rest, kVersionDigits);
  const std::string_view trace_id = TakeField(rest, kTraceIdDigits);
  const std::string_view parent_id = TakeField(rest, kParentIdDigits);
  const std::string_view flags = TakeField(rest, kFlagsDigits);
  if (version.empty() || trace_id.empty() || parent_id.empty() || flags.empty()) {
    return std::nullopt;
  }
  if (!IsHex(version) || version == "ff" || !IsId(trace_id) || !IsId(parent_id) || !IsHex(flags)) {
    return std::nullopt;
  }
  if (version == "00" && header.size() != kHeaderBytes) return std::nullopt;
  return TraceContext{.trace_id = std::string(trace_id), .parent_id = std::string(parent_id)};
}

}  // namespace whit
