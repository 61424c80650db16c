// How the server's capacity looks on a terminal, and as a line of text. Pure functions.
#ifndef WHIT_SERVER_CLI_CAPACITY_VIEW_H_
#define WHIT_SERVER_CLI_CAPACITY_VIEW_H_

#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

struct ViewStyle {
  int width = 80;      // columns; no line is wider
  bool color = false;  // ANSI escapes, 256 colours
};

// Several lines. What the pool holds is one bar over its capacity, in the colours of the rungs
// below it, whose own bars are shares of the used bytes. `speeds` are tokens per second of
// snapshots up to this one, oldest first: a small plot if there are several.
std::string RenderCapacity(const v1::GetCapacityResponse& capacity, const ViewStyle& style,
                           absl::Span<const double> speeds = {});

// One line without colours or a line break.
std::string CapacityLine(const v1::GetCapacityResponse& capacity);

// The start of a line that takes up at most `width` columns. Escape sequences are kept and take
// none; every other character takes one.
std::string CutToWidth(std::string_view line, int width);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_CAPACITY_VIEW_H_
