#ifndef WHIT_SERVER_VERSION_H_
#define WHIT_SERVER_VERSION_H_

#include <string_view>

namespace whit {

// The project's version, as CMakeLists.txt gives it.
std::string_view Version();

}  // namespace whit

#endif  // WHIT_SERVER_VERSION_H_
