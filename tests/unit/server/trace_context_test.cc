#include "server/trace_context.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kParentId[] = "00f067aa0ba902b7";

std::string Header(const std::string& version = "00", const std::string& trace_id = kTraceId,
                   const std::string& parent_id = kParentId, const std::string& flags = "01") {
  return absl::StrCat(version, "-", trace_id, "-", parent_id, "-", flags);
}

TEST(TraceContextTest, TakesTheIdsOfAHeader) {
  for (const std::string& header : {Header(), Header("00", kTraceId, kParentId, "00"),
                                    // Versions to come may append to it.
                                    Header("01"), absl::StrCat(Header("cc"), "-more")}) {
    const std::optional<TraceContext> context = ParseTraceparent(header);
    ASSERT_TRUE(context.has_value()) << header;
    EXPECT_EQ(context->trace_id, kTraceId);
    EXPECT_EQ(context->parent_id, kParentId);
  }
}

TEST(TraceContextTest, IgnoresWhatIsMalformed) {
  const std::string zeros(32, '0');
  for (const std::string& header :
       {std::string(), std::string("00"), std::string(55, '-'), std::string(55, '0'), Header("ff"),
        Header("0g"), Header("00", zeros), Header("00", kTraceId, zeros.substr(16)),
        Header("00", "4BF92F3577B34DA6A3CE929D0E0E4736"), Header("00", kTraceId, kParentId, "0x"),
        absl::StrCat(Header(), "-"), absl::StrCat(Header(), "0"), absl::StrCat(Header("cc"), "0"),
        Header().substr(1), absl::StrCat(" ", Header()),
        // One digit over to the next field.
        Header("00", absl::StrCat(kTraceId, "0"), std::string(kParentId).substr(1))}) {
    EXPECT_FALSE(ParseTraceparent(header).has_value()) << header;
  }
}

}  // namespace
}  // namespace whit
