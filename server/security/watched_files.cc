#include "server/security/watched_files.h"

#include <sys/stat.h>

#include <utility>

namespace whit {
namespace {

constexpr absl::Duration kLookInterval = absl::Seconds(1);

int64_t Nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

WatchedFiles::WatchedFiles(std::vector<std::string> paths)
    : paths_(std::move(paths)), known_(Look()) {}

bool WatchedFiles::Changed(absl::Time now) {
  // A clock that was set back must not stop it.
  if (now < next_look_ && now + kLookInterval >= next_look_) return false;
  next_look_ = now + kLookInterval;
  Versions versions = Look();
  if (versions == known_) return false;
  known_ = std::move(versions);
  return true;
}

WatchedFiles::Versions WatchedFiles::Look() const {
  Versions versions;
  for (const std::string& path : paths_) {
    struct stat status {};
    if (stat(path.c_str(), &status) != 0) {
      versions.emplace_back();
      continue;
    }
    versions.push_back(Version{.device = status.st_dev,
                               .inode = status.st_ino,
                               .bytes = int64_t{status.st_size},
                               .modified_ns = Nanoseconds(status.st_mtim),
                               .changed_ns = Nanoseconds(status.st_ctim)});
  }
  return versions;
}

}  // namespace whit
