#include "server/cli/explanation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace whit {
namespace {

using testing::HasSubstr;
using testing::Not;

v1::KvCacheUsage Usage(const std::vector<std::pair<std::string, float>>& tokens) {
  v1::KvCacheUsage usage;
  for (const auto& [text, bits] : tokens) {
    v1::TokenPrecision* token = usage.add_tokens();
    token->set_token(text);
    token->set_bits(bits);
  }
  return usage;
}

TEST(RenderExplanationTest, EachTokenHasTheColourOfItsBits) {
  const std::string low = RenderExplanation(Usage({{"low", 2.25f}}));
  const std::string high = RenderExplanation(Usage({{"low", 16.f}}));
  EXPECT_NE(low, high);
  EXPECT_THAT(low, HasSubstr("mlow\x1b[0m"));
  // Not known: as it is.
  EXPECT_THAT(RenderExplanation(Usage({{"cached", 0}, {" x", 0}})),
              testing::StartsWith("cached x"));
}

TEST(RenderExplanationTest, CharactersAreWholeAndLinesEndWithoutColour) {
  const std::string euro = RenderExplanation(Usage({{"\xE2\x82", 3}, {"\xAC!", 3}}));
  EXPECT_THAT(euro, HasSubstr("\xE2\x82\xAC!"));
  EXPECT_THAT(euro, Not(HasSubstr("\uFFFD")));
  EXPECT_THAT(RenderExplanation(Usage({{"a\nb", 3}})), HasSubstr("a\x1b[0m\n\x1b["));
  EXPECT_THAT(RenderExplanation(Usage({{"\xE2\x82", 3}})), HasSubstr("\uFFFD"));
}

}  // namespace
}  // namespace whit
