// Files that may be replaced while the server runs: certificates, tokens.
#ifndef WHIT_SERVER_SECURITY_WATCHED_FILES_H_
#define WHIT_SERVER_SECURITY_WATCHED_FILES_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace whit {

// Tells that files have changed, to whoever asks; so nothing runs while nobody does. Follows links,
// as those by which Kubernetes swaps a mounted secret.
//
// Threads: one caller at a time.
class WatchedFiles {
 public:
  // They count as known as they are now.
  explicit WatchedFiles(std::vector<std::string> paths);

  // True if one is not as it was when this was last true. They are looked at once a second at most:
  // in between the answer is no.
  bool Changed(absl::Time now);

 private:
  struct Version {
    dev_t device;
    ino_t inode;
    int64_t bytes, modified_ns, changed_ns;
    bool operator==(const Version&) const = default;
  };
  // Nothing for a file that is not there.
  using Versions = std::vector<std::optional<Version>>;
  Versions Look() const;

  const std::vector<std::string> paths_;
  Versions known_;
  absl::Time next_look_ = absl::InfinitePast();
};

}  // namespace whit

#endif  // WHIT_SERVER_SECURITY_WATCHED_FILES_H_
