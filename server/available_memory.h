// How much memory this process may still take.
#ifndef WHIT_SERVER_AVAILABLE_MEMORY_H_
#define WHIT_SERVER_AVAILABLE_MEMORY_H_

#include <cstdint>
#include <string>

namespace whit {

// The smaller of what the machine has available and what is left of each cgroup limit (v1 or v2)
// this process is under; page cache that can be dropped counts as available. 0 if nothing can be
// read. `root` stands before /proc and /sys, for tests.
uint64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace whit

#endif  // WHIT_SERVER_AVAILABLE_MEMORY_H_
