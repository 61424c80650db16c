#ifndef WHIT_RUNTIME_TEXT_QUOTED_H_
#define WHIT_RUNTIME_TEXT_QUOTED_H_

#include <string>
#include <string_view>

namespace whit {

// Text that is not ours, fit for an error message: in quotes, escaped, and cut if it is long.
std::string Quoted(std::string_view text);

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_QUOTED_H_
