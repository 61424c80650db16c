#include "server/security/watched_files.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/small_file.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class WatchedFilesTest : public ::testing::Test {
 protected:
  WatchedFilesTest() { std::filesystem::create_directories(folder_); }
  ~WatchedFilesTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ / name; }
  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name)) << content;
    return Path(name);
  }

  const std::filesystem::path folder_ =
      std::filesystem::path(::testing::TempDir()) /
      ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(WatchedFilesTest, SeesEveryKindOfChangeOnce) {
  const std::string first = Write("first", "one");
  const std::string second = Write("second", "two");
  WatchedFiles files({first, second});
  absl::Time now = absl::UnixEpoch();
  const auto changed = [&] { return files.Changed(now += absl::Seconds(1)); };
  EXPECT_FALSE(changed());

  Write("second", "longer");
  EXPECT_TRUE(changed());
  EXPECT_FALSE(changed());

  std::filesystem::rename(Write("new", "abc"), first);  // as long as what it replaces
  EXPECT_TRUE(changed());
  EXPECT_FALSE(changed());

  std::filesystem::remove(first);
  EXPECT_TRUE(changed());
  EXPECT_FALSE(changed());
  Write("first", "again");
  EXPECT_TRUE(changed());
}

TEST_F(WatchedFilesTest, SeesALinkSwapped) {
  Write("v1", "same");
  Write("v2", "same");
  std::filesystem::create_symlink("v1", Path("current"));
  WatchedFiles files({Path("current")});
  std::filesystem::create_symlink("v2", Path("next"));
  std::filesystem::rename(Path("next"), Path("current"));
  EXPECT_TRUE(files.Changed(absl::UnixEpoch()));
}

TEST_F(WatchedFilesTest, LooksOnceASecondAtMost) {
  const std::string path = Write("file", "one");
  WatchedFiles files({path});
  const absl::Time start = absl::UnixEpoch();
  EXPECT_FALSE(files.Changed(start));
  Write("file", "other");
  EXPECT_FALSE(files.Changed(start + absl::Milliseconds(999)));
  EXPECT_TRUE(files.Changed(start + absl::Seconds(1)));
  Write("file", "a third");
  EXPECT_TRUE(files.Changed(start - absl::Hours(1)));  // the clock was set back
}

TEST_F(WatchedFilesTest, SmallFilesAreReadWhole) {
  const std::string content("a\0b\n", 4);
  EXPECT_EQ(*ReadSmallFile(Write("file", content)), content);
  const absl::Status missing = ReadSmallFile(Path("nowhere")).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(Path("nowhere")));
  EXPECT_THAT(std::string(ReadSmallFile(folder_).status().message()), HasSubstr("regular file"));
  EXPECT_THAT(std::string(ReadSmallFile("/dev/zero").status().message()),
              HasSubstr("regular file"));
  EXPECT_THAT(
      std::string(ReadSmallFile(Write("big", std::string((1 << 20) + 1, 'x'))).status().message()),
      HasSubstr("1048577 bytes"));
}

}  // namespace
}  // namespace whit
