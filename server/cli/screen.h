// Screen: the terminal behind standard output, if there is one.
#ifndef WHIT_SERVER_CLI_SCREEN_H_
#define WHIT_SERVER_CLI_SCREEN_H_

#include <string>

namespace whit {

// Draws a view again and again over itself, below what stood on the terminal before. Leaves nothing
// to restore: whatever ends the program, the last view stays and the cursor stands below it.
class Screen {
 public:
  // Standard output is a terminal that can move its cursor.
  static bool IsThere();
  // It is, and NO_COLOR (no-color.org) is not set.
  static bool HasColor();
  // Columns; 80 if there is no terminal.
  static int Width();

  // `view` is whole lines, none wider than Width(). Those below the terminal's end are left out.
  void Show(const std::string& view);

 private:
  int lines_ = 0;  // drawn last time
  int width_ = 0;  // of the terminal then
};

}  // namespace whit

#endif  // WHIT_SERVER_CLI_SCREEN_H_
