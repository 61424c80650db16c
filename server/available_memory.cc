#include "server/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

namespace whit {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// The number in a file that holds just one; none if it is absent or says "max".
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  if (file >> number) return number;
  return std::nullopt;
}

// The number after `key` in a file of "key number" lines.
std::optional<uint64_t> ReadKey(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.size() <= key.size() || line.compare(0, key.size(), key) != 0) continue;
    char* end = nullptr;
    const uint64_t number = std::strtoull(line.c_str() + key.size(), &end, 10);
    if (end != line.c_str() + key.size()) return number;
  }
  return std::nullopt;
}

// What is left of one cgroup's limit.
uint64_t CgroupHeadroom(const std::string& directory, const std::string& limit_file,
                        const std::string& usage_file, std::string_view cache_key) {
  const std::optional<uint64_t> limit = ReadNumber(directory + "/" + limit_file);
  const std::optional<uint64_t> usage = ReadNumber(directory + "/" + usage_file);
  if (!limit || !usage) return kUnlimited;
  const uint64_t cache = ReadKey(directory + "/memory.stat", cache_key).value_or(0);
  const uint64_t pinned = *usage - std::min(*usage, cache);
  return *limit - std::min(*limit, pinned);
}

// This process's path in the hierarchy whose line in /proc/self/cgroup contains `marker`.
std::string CgroupPath(const std::string& root, std::string_view marker) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t at = line.find(marker);
    if (at != std::string::npos) return line.substr(at + marker.size());
  }
  return "";
}

}  // namespace

uint64_t AvailableMemoryBytes(const std::string& root) {
  uint64_t available = kUnlimited;
  if (const auto kib = ReadKey(root + "/proc/meminfo", "MemAvailable:")) available = *kib * 1024;

  // A limit may sit on any ancestor. Inside a container the path may not exist below the mount,
  // whose own files are then the ones that count: the walk ends there.
  const std::string v2 = root + "/sys/fs/cgroup";
  std::string path = CgroupPath(root, "0::");
  while (true) {
    available = std::min(
        available, CgroupHeadroom(v2 + path, "memory.max", "memory.current", "inactive_file "));
    if (path.empty()) break;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }

  const std::string v1 = root + "/sys/fs/cgroup/memory";
  for (const std::string& group : {CgroupPath(root, ":memory:"), std::string()}) {
    available =
        std::min(available, CgroupHeadroom(v1 + group, "memory.limit_in_bytes",
                                           "memory.usage_in_bytes", "total_inactive_file "));
  }
  return available == kUnlimited ? 0 : available;
}

}  // namespace whit
