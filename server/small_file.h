// Files that hold a certificate, a key or tokens.
#ifndef WHIT_SERVER_SMALL_FILE_H_
#define WHIT_SERVER_SMALL_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace whit {

// The whole of a regular file. NOT_FOUND, PERMISSION_DENIED, … name it and say why it cannot be
// had; INVALID_ARGUMENT if it is none, or has more than a mebibyte.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

}  // namespace whit

#endif  // WHIT_SERVER_SMALL_FILE_H_
