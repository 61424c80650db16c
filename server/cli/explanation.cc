#include "server/cli/explanation.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/text/utf8.h"

namespace whit {
namespace {

// From cold to hot. A token is of the first band whose limit its bits stay below.
struct Band {
  double below;
  const char* name;
  int color;  // of the 256 of terminals
};
constexpr Band kBands[] = {{2.5, "to 2.5", 17}, {3, "to 3", 24},    {4, "to 4", 29},
                           {6, "to 6", 64},     {10, "to 10", 130}, {1e9, "exact", 88}};

std::string Colored(const Band& band, const std::string& text) {
  std::string colored = absl::StrFormat("\x1b[48;5;%dm\x1b[97m", band.color);
  // A terminal would fill the rest of the line.
  for (const char c : text) {
    if (c == '\n') {
      absl::StrAppend(&colored, "\x1b[0m\n", absl::StrFormat("\x1b[48;5;%dm\x1b[97m", band.color));
    } else {
      colored += c;
    }
  }
  return colored + "\x1b[0m";
}

const Band& BandOf(double bits) {
  const Band* band = kBands;
  while (bits >= band->below) ++band;
  return *band;
}

}  // namespace

std::string RenderExplanation(const v1::KvCacheUsage& usage) {
  std::string rendered;
  Utf8Stream characters;  // some are made of several tokens
  for (const v1::TokenPrecision& token : usage.tokens()) {
    const std::string text = characters.Push(token.token());
    if (text.empty()) continue;
    rendered += token.bits() == 0 ? text : Colored(BandOf(token.bits()), text);
  }
  absl::StrAppend(&rendered, characters.Flush(), "\n\nbits per element:");
  for (const Band& band : kBands) {
    absl::StrAppend(&rendered, " ", Colored(band, absl::StrCat(" ", band.name, " ")));
  }
  return rendered + "; not coloured: found in the prefix cache\n";
}

}  // namespace whit
