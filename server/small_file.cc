#include "server/small_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace whit {

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  constexpr off_t kMaxBytes = 1 << 20;
  const auto cannot_read = [&] {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  };
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return cannot_read();
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  if (status.st_size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", status.st_size, " bytes; at most ", kMaxBytes, " are read"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return cannot_read();
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace whit
