// A directory for a test's files.
#ifndef WHIT_TESTS_UNIT_SUPPORT_PROCESS_TEMP_DIR_H_
#define WHIT_TESTS_UNIT_SUPPORT_PROCESS_TEMP_DIR_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

namespace whit {

// Ends with a slash; removed when the process ends. Each test runs in a process of its own, several
// at the same time, so a name under testing::TempDir() may be another's.
inline std::string ProcessTempDir() {
  struct Directory {
    Directory() { std::filesystem::create_directories(path); }
    ~Directory() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
    std::string path = testing::TempDir() + "/whit_test_" + std::to_string(getpid()) + "/";
  };
  static const Directory directory;
  return directory.path;
}

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_SUPPORT_PROCESS_TEMP_DIR_H_
