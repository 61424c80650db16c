// How --help of both programs looks.
#ifndef WHIT_SERVER_HELP_FORMATTER_H_
#define WHIT_SERVER_HELP_FORMATTER_H_

#include <CLI/CLI.hpp>
#include <string>

namespace whit {

// A flag's name and value in the left column, its description and default in the right one, within
// 100 characters. What excludes or needs what is said by the descriptions.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();
  std::string make_option_opts(const CLI::Option* option) const override;
  std::string make_option_desc(const CLI::Option* option) const override;
};

}  // namespace whit

#endif  // WHIT_SERVER_HELP_FORMATTER_H_
