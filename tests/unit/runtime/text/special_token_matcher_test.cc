#include "runtime/text/special_token_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace whit {
namespace {

using testing::ElementsAre;
using Range = SpecialTokenMatcher::Range;

// The pieces in their order; a token as "#id".
std::vector<std::string> Split(const SpecialTokenMatcher& matcher, std::string_view text,
                               const std::vector<Range>& ranges) {
  std::vector<std::string> pieces;
  matcher.Split(
      text, ranges, [&](std::string_view stretch) { pieces.emplace_back(stretch); },
      [&](int32_t id) { pieces.push_back(absl::StrCat("#", id)); });
  return pieces;
}

std::vector<std::string> SplitAll(const SpecialTokenMatcher& matcher, std::string_view text) {
  return Split(matcher, text, {{0, text.size()}});
}

const SpecialTokenMatcher& Matcher() {
  static const SpecialTokenMatcher matcher(
      {{"<|end|>", 1}, {"<|e", 2}, {"<|end|><|end|>", 3}, {"    ", 4, true}, {"  ", 5, true}});
  return matcher;
}

TEST(SpecialTokenMatcherTest, TakesTheEarliestAndThenTheLongest) {
  EXPECT_THAT(SplitAll(Matcher(), ""), ElementsAre());
  EXPECT_THAT(SplitAll(Matcher(), "a<|end|>b"), ElementsAre("a", "#1", "b"));
  EXPECT_THAT(SplitAll(Matcher(), "<|end|><|end|><|end|>"), ElementsAre("#3", "#1"));
  EXPECT_THAT(SplitAll(Matcher(), "<|en<|<|end|"), ElementsAre("#2", "n<|", "#2", "nd|"));
  EXPECT_THAT(SplitAll(Matcher(), "x       y"), ElementsAre("x", "#4", "#5", " y"));
}

TEST(SpecialTokenMatcherTest, SpecialTokensCountOnlyWithinTheirRanges) {
  const std::string text = "<|end|>  <|end|>";
  EXPECT_THAT(Split(Matcher(), text, {}), ElementsAre("<|end|>", "#5", "<|end|>"));
  EXPECT_THAT(Split(Matcher(), text, {{9, 16}}), ElementsAre("<|end|>", "#5", "#1"));
  // A range that ends within a token leaves room for a shorter one.
  EXPECT_THAT(Split(Matcher(), text, {{0, 6}}), ElementsAre("#2", "nd|>", "#5", "<|end|>"));
  EXPECT_THAT(Split(Matcher(), text, {{1, 15}}), ElementsAre("<|end|>", "#5", "#2", "nd|>"));
  EXPECT_THAT(Split(Matcher(), "<|end|>x<|end|>y<|end|>", {{0, 7}, {16, 23}}),
              ElementsAre("#1", "x<|end|>y", "#1"));
}

TEST(SpecialTokenMatcherTest, WithoutTokensTheTextIsWhole) {
  EXPECT_THAT(SplitAll(SpecialTokenMatcher({}), "a <|end|>"), ElementsAre("a <|end|>"));
}

}  // namespace
}  // namespace whit
