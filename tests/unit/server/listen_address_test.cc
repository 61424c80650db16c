#include "server/listen_address.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ListenAddressTest, KnowsLoopback) {
  for (const char* address : {"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "::2", "::ffff:10.0.0.1",
                              "fe80::1", "localhost", ""}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

TEST(ListenAddressTest, KnowsWhoCanConnect) {
  for (const char* address : {"127.0.0.1:0", "127.1.2.3:50051", "[::1]:80", "unix:/run/whit.sock",
                              "[::ffff:127.0.0.1]:1"}) {
    ASSERT_TRUE(IsLocal(address).ok()) << address;
    EXPECT_TRUE(*IsLocal(address)) << address;
  }
  for (const char* address : {"0.0.0.0:50051", "[::]:50051", "192.0.2.1:1", "[2001:db8::1]:1"}) {
    ASSERT_TRUE(IsLocal(address).ok()) << address;
    EXPECT_FALSE(*IsLocal(address)) << address;
  }
  EXPECT_THAT(std::string(IsLocal("no host:1").status().message()),
              HasSubstr("the host of no host:1"));
}

TEST(ListenAddressTest, ResolvesHosts) {
  EXPECT_THAT(*HostAddresses("127.0.0.1:50051"), ElementsAre("127.0.0.1"));
  EXPECT_THAT(*HostAddresses("[::1]:0"), ElementsAre("::1"));
}

}  // namespace
}  // namespace whit
