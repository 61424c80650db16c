#include "server/flag_values.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

TEST(ParseByteSizeTest, TakesUnitsOfBothKinds) {
  const std::vector<std::pair<std::string, uint64_t>> cases = {{"0", 0},
                                                               {"4096", 4096},
                                                               {"4096B", 4096},
                                                               {"24M", 24 << 20},
                                                               {"24MiB", 24 << 20},
                                                               {"24MB", 24'000'000},
                                                               {"1k", 1024},
                                                               {"2G", uint64_t{2} << 30},
                                                               {"1.5GiB", uint64_t{3} << 29},
                                                               {"1.5 GiB", uint64_t{3} << 29},
                                                               {"0.5K", 512},
                                                               {"1T", uint64_t{1} << 40}};
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<uint64_t> parsed = ParseByteSize(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseByteSizeTest, NamesWhatIsNoSize) {
  for (const std::string text :
       {"", "M", "-1", "+1", "1Q", "1MM", "0x10", "1e3", "nan", "inf", " 1", "1  K", "1G2"}) {
    const absl::StatusOr<uint64_t> parsed = ParseByteSize(text);
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status())) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("'" + text + "'"));
  }
  EXPECT_THAT(std::string(ParseByteSize("99999999T").status().message()), HasSubstr("4 EiB"));
  EXPECT_FALSE(ParseByteSize(std::string(400, '9')).ok());
}

TEST(FormatByteSizeTest, IsShort) {
  EXPECT_EQ(FormatByteSize(0), "0 B");
  EXPECT_EQ(FormatByteSize(1023), "1023 B");
  EXPECT_EQ(FormatByteSize(1024), "1.0 KiB");
  EXPECT_EQ(FormatByteSize(uint64_t{3} << 29), "1.5 GiB");
  EXPECT_EQ(FormatByteSize(512 << 20), "512 MiB");
}

TEST(ParseDurationTest, TakesUnitsAndPlainSeconds) {
  EXPECT_EQ(*ParseDuration("0"), absl::ZeroDuration());
  EXPECT_EQ(*ParseDuration("1.5"), absl::Milliseconds(1500));
  EXPECT_EQ(*ParseDuration("500ms"), absl::Milliseconds(500));
  EXPECT_EQ(*ParseDuration("1m30s"), absl::Seconds(90));
}

TEST(ParseDurationTest, NamesWhatIsNoDuration) {
  for (const std::string text : {"", "x", "5x", "-1s", "inf", "nan", "1e99", "100000h"}) {
    const absl::StatusOr<absl::Duration> parsed = ParseDuration(text);
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status())) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("'" + text + "'"));
  }
}

TEST(CheckListenAddressTest, TakesHostsPortsAndSockets) {
  for (const std::string address :
       {"127.0.0.1:50051", "0.0.0.0:0", "localhost:65535", "[::1]:80", "unix:/run/whit.sock"}) {
    EXPECT_TRUE(CheckListenAddress(address).ok()) << CheckListenAddress(address);
  }
  for (const std::string address : {"", "50051", ":50051", "host", "host:", "host:65536", "host:-1",
                                    "host:1x", "::1:80", "[]:80", "unix:"}) {
    const absl::Status status = CheckListenAddress(address);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr("'" + address + "'"));
  }
  EXPECT_THAT(std::string(CheckListenAddress("unix:/" + std::string(107, 'x')).message()),
              HasSubstr("108 bytes"));
}

}  // namespace
}  // namespace whit
