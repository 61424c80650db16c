#include "server/cli/screen.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace whit {
namespace {

struct Size {
  int width = 80, height = 24;
};

Size TerminalSize() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) {
    return {};
  }
  return {.width = size.ws_col, .height = size.ws_row};
}

bool IsSet(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

}  // namespace

bool Screen::IsThere() {
  const char* const type = std::getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 && type != nullptr && std::string_view(type) != "dumb";
}

bool Screen::HasColor() { return IsThere() && !IsSet("NO_COLOR"); }

int Screen::Width() { return TerminalSize().width; }

void Screen::Show(const std::string& view) {
  const Size size = TerminalSize();
  std::string drawing = "\x1b[?25l";  // without a cursor that jumps about
  if (lines_ > 0 && size.width != width_) {
    drawing += "\x1b[H\x1b[2J";  // lines may have been wrapped: nobody knows where they begin
  } else if (lines_ > 0) {
    absl::StrAppend(&drawing, "\x1b[", lines_, "A\r");
  }
  lines_ = 0;
  width_ = size.width;
  for (size_t start = 0; start < view.size() && lines_ + 1 < size.height; ++lines_) {
    const size_t end = view.find('\n', start);
    absl::StrAppend(&drawing, view.substr(start, end - start), "\x1b[K\n");
    start = end + 1;
  }
  drawing += "\x1b[J\x1b[?25h";
  std::fwrite(drawing.data(), 1, drawing.size(), stdout);
  std::fflush(stdout);
}

}  // namespace whit
