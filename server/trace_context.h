// W3C Trace Context: what ties a call to the trace of whoever made it.
#ifndef WHIT_SERVER_TRACE_CONTEXT_H_
#define WHIT_SERVER_TRACE_CONTEXT_H_

#include <optional>
#include <string>
#include <string_view>

namespace whit {

struct TraceContext {
  std::string trace_id;   // 32 hexadecimal digits
  std::string parent_id;  // 16: the caller's span
};

// Of the header `traceparent`, "00-<trace-id>-<parent-id>-<flags>"; nothing if it is malformed:
// then the standard has it ignored. Of versions to come, what they share with this one is taken.
std::optional<TraceContext> ParseTraceparent(std::string_view header);

}  // namespace whit

#endif  // WHIT_SERVER_TRACE_CONTEXT_H_
