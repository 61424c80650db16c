#include "server/help_formatter.h"

#include <cstddef>
#include <sstream>

namespace whit {
namespace {

constexpr size_t kLeftColumn = 36;
constexpr size_t kRightColumn = 64;

// Breaks lines between words; CLI11 indents what follows a line break.
std::string Wrap(const std::string& text, size_t width) {
  std::istringstream words(text);
  std::string wrapped;
  size_t column = 0;
  for (std::string word; words >> word;) {
    if (column > 0 && column + 1 + word.size() > width) {
      wrapped += '\n';
      column = 0;
    } else if (column > 0) {
      wrapped += ' ';
      ++column;
    }
    wrapped += word;
    column += word.size();
  }
  return wrapped;
}

}  // namespace

HelpFormatter::HelpFormatter() { column_width(kLeftColumn); }

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  const bool takes_value = option->get_type_size() != 0 && !option->get_positional();
  return takes_value ? " " + option->get_type_name() : "";
}

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  std::string description = option->get_description();
  if (option->get_required()) description += " (required)";
  std::string default_value = option->get_default_str();
  // CLI11 has brackets around a list already.
  if (!default_value.empty() && default_value.front() != '[') {
    default_value = "[" + default_value + "]";
  }
  description += " " + default_value;
  return Wrap(description, kRightColumn);
}

}  // namespace whit
