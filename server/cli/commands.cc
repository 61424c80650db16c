#include "server/cli/commands.h"

#include <iostream>
#include <iterator>

namespace whit {

std::string TextOrStandardInput(const std::string& argument) {
  if (argument != "-") return argument;
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

}  // namespace whit
