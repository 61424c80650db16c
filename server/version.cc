#include "server/version.h"

namespace whit {

std::string_view Version() { return WHIT_VERSION; }

}  // namespace whit
