// How precisely a request's tokens were kept, as coloured text.
#ifndef WHIT_SERVER_CLI_EXPLANATION_H_
#define WHIT_SERVER_CLI_EXPLANATION_H_

#include <string>

#include "whit/v1/text_generation.pb.h"

namespace whit {

// The tokens' text, each on a background that tells its bits (ANSI escapes, 256 colours), and a
// line that says which colour means what. Bytes that are not UTF-8 become U+FFFD.
std::string RenderExplanation(const v1::KvCacheUsage& usage);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_EXPLANATION_H_
