#include "server/message_bytes.h"

#include <algorithm>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

std::string MessageOf(const std::string& bytes) {
  v1::GenerateStreamRequest request;
  const absl::Status status = ParseMessage(bytes, request);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

// `bytes` with `marker` in them overwritten, which no string field's setter would let through.
std::string Break(std::string bytes, const std::string& marker, const std::string& replacement) {
  EXPECT_EQ(marker.size(), replacement.size());
  const size_t at = bytes.find(marker);
  EXPECT_NE(at, std::string::npos);
  std::copy(replacement.begin(), replacement.end(), bytes.begin() + at);
  return bytes;
}

TEST(ParseMessageTest, ReadsWhatWasWritten) {
  v1::GenerateStreamRequest request;
  request.mutable_prompt()->set_text("grüß dich");
  request.mutable_stopping()->add_stop("the end");
  v1::GenerateStreamRequest parsed;
  ASSERT_TRUE(ParseMessage(SerializeMessage(request), parsed).ok());
  EXPECT_EQ(parsed.SerializeAsString(), request.SerializeAsString());
  EXPECT_TRUE(ParseMessage(std::string_view(), parsed).ok());
}

TEST(ParseMessageTest, NamesTheFieldThatIsNotUtf8) {
  v1::GenerateStreamRequest request;
  request.mutable_prompt()->set_text("abc@@");
  EXPECT_EQ(MessageOf(Break(request.SerializeAsString(), "@@", "\xc3(")),
            "prompt.text is not UTF-8 from byte 3 on");

  request.mutable_prompt()->mutable_chat()->add_messages()->set_content("fine");
  request.mutable_prompt()->mutable_chat()->add_messages()->set_content("@");
  EXPECT_EQ(MessageOf(Break(request.SerializeAsString(), "@", "\xff")),
            "prompt.chat.messages[1].content is not UTF-8 from byte 0 on");

  request.Clear();
  request.set_request_id("id");
  request.mutable_stopping()->add_stop("good");
  request.mutable_stopping()->add_stop("b@d");
  EXPECT_EQ(MessageOf(Break(request.SerializeAsString(), "@", "\x80")),
            "stopping.stop[1] is not UTF-8 from byte 1 on");
}

TEST(ParseMessageTest, NamesBytesThatAreNoMessage) {
  EXPECT_THAT(MessageOf("\xff\xff\xff"), HasSubstr("3 bytes are no whit.v1.GenerateStreamRequest"));
  v1::GenerateStreamRequest request;
  request.mutable_prompt()->set_text("some text");
  const std::string bytes = request.SerializeAsString();
  for (size_t size = 1; size < bytes.size(); ++size) {
    EXPECT_THAT(MessageOf(bytes.substr(0, size)), HasSubstr("are no whit.v1"));
  }
}

}  // namespace
}  // namespace whit
