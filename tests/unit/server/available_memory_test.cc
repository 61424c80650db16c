#include "server/available_memory.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/unit/support/process_temp_dir.h"

namespace whit {
namespace {

namespace fs = std::filesystem;

// A made-up machine below a folder of its own.
class AvailableMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(ProcessTempDir()) /
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    Write("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    1000 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& content) {
    const fs::path file = root_.string() + path;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << content;
  }
  uint64_t Available() const { return AvailableMemoryBytes(root_.string()); }

 private:
  fs::path root_;
};

TEST_F(AvailableMemoryTest, IsTheMachinesWithoutALimit) {
  EXPECT_EQ(Available(), 1000u << 10);
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "max\n");
  Write("/sys/fs/cgroup/memory.current", "1\n");
  EXPECT_EQ(Available(), 1000u << 10);
}

TEST_F(AvailableMemoryTest, IsWhatACgroupLeaves) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "500000\n");
  Write("/sys/fs/cgroup/memory.current", "200000\n");
  EXPECT_EQ(Available(), 300000u);
  // Page cache can be dropped.
  Write("/sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 50000\nactive_file 7\n");
  EXPECT_EQ(Available(), 350000u);
  Write("/sys/fs/cgroup/memory.current", "900000\n");
  EXPECT_EQ(Available(), 0u);
}

TEST_F(AvailableMemoryTest, HeedsTheLimitsOfAncestors) {
  Write("/proc/self/cgroup", "0::/a/b\n");
  Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  Write("/sys/fs/cgroup/a/b/memory.current", "1000\n");
  Write("/sys/fs/cgroup/a/memory.max", "40000\n");
  Write("/sys/fs/cgroup/a/memory.current", "10000\n");
  EXPECT_EQ(Available(), 30000u);
}

TEST_F(AvailableMemoryTest, KnowsTheFirstVersionOfCgroups) {
  Write("/proc/self/cgroup", "3:cpu:/x\n2:memory:/a\n");
  Write("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "60000\n");
  Write("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "20000\n");
  EXPECT_EQ(Available(), 40000u);
}

TEST_F(AvailableMemoryTest, IsZeroIfNothingIsKnown) {
  EXPECT_EQ(AvailableMemoryBytes("/nonexistent"), 0u);
}

}  // namespace
}  // namespace whit
