#include "server/vllm/stored_zip.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace whit {
namespace {

using std::string_view_literals::operator""sv;

// tests/integration/test_vllm.py reads one with Python's zipfile.
TEST(StoredZipTest, IsLaidOutAsTheFormatSays) {
  // But for the versions, what Python's zipfile makes of it.
  const std::string_view expected =
      "PK\x03\x04\x0A\x00\x00\x00\x00\x00\x00\x00\x21\x00\x86\xA6\x10\x36"
      "\x05\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00"
      "a"
      "hello"
      "PK\x01\x02\x0A\x00\x0A\x00\x00\x00\x00\x00\x00\x00\x21\x00\x86\xA6\x10\x36"
      "\x05\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"
      "\x00\x00\x00\x00\x00\x00\x00\x00"
      "a"
      "PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00\x2F\x00\x00\x00\x24\x00\x00\x00\x00\x00"sv;
  EXPECT_EQ(MakeStoredZip({{"a", "hello"}}), expected);
}

TEST(StoredZipTest, MembersFollowEachOther) {
  const std::string zip = MakeStoredZip({{"first", "1"}, {"second", ""}, {"third", "\0x"sv}});
  const std::string_view view = zip;
  EXPECT_LT(view.find("first"), view.find("second"));
  // The end record: three members, and where the directory begins.
  const std::string_view end = view.substr(view.size() - 22);
  EXPECT_EQ(end.substr(0, 4), "PK\5\6");
  EXPECT_EQ(end[8], 3);
  const auto directory = static_cast<unsigned char>(end[16]);
  EXPECT_EQ(view.substr(directory, 4), "PK\1\2");
  EXPECT_EQ(directory, 3 * 30 + 5 + 1 + 6 + 0 + 5 + 2);
}

}  // namespace
}  // namespace whit
