#include "controller/policy_lookup.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

namespace whit {
namespace {

namespace fs = std::filesystem;

constexpr char kExtension[] = ".whitpolicy";

// By name, so that the choice does not depend on the file system. Empty if there is no directory.
std::vector<std::string> PolicyFilesIn(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == kExtension) paths.push_back(it->path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// Empty if there is none.
std::string PathOfPolicy(const PolicyLookup& lookup, uint64_t fingerprint) {
  if (!lookup.path.empty()) return lookup.path;
  std::error_code error;
  const std::string beside = PolicyPathBeside(lookup.model_path);
  if (fs::exists(beside, error)) return beside;
  for (const std::string& path : PolicyFilesIn(lookup.directory)) {
    if (PeekFingerprint(path) == fingerprint) return path;
  }
  return "";
}

}  // namespace

std::string PolicyPathBeside(const std::string& model_path) {
  fs::path path(model_path);
  if (path.extension() == ".gguf") path.replace_extension();
  return (path += kExtension).string();
}

std::string ShippedPolicyDirectory() {
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  return (executable.parent_path().parent_path() / "share/whit/policies").string();
}

absl::StatusOr<std::optional<FoundPolicy>> FindPolicy(const PolicyLookup& lookup,
                                                      const ModelIdentity& model) {
  if (lookup.path == kNoPolicyFile) return std::nullopt;
  std::string path = PathOfPolicy(lookup, model.fingerprint);
  if (path.empty()) return std::nullopt;
  absl::StatusOr<PolicyFile> file = LoadPolicyFile(path, model);
  if (!file.ok()) return file.status();
  return FoundPolicy{std::move(path), *std::move(file)};
}

}  // namespace whit
