#include "runtime/text/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace whit {
namespace {

struct Outcome {
  std::string text;
  bool stopped = false;
  bool operator==(const Outcome&) const = default;
};

void PrintTo(const Outcome& outcome, std::ostream* out) {
  *out << testing::PrintToString(outcome.text) << (outcome.stopped ? " stopped" : "");
}

// All that is shown of `text`, given in pieces of `piece` bytes.
Outcome Match(const std::vector<std::string>& stops, std::string_view text, size_t piece) {
  StopMatcher matcher(stops);
  Outcome outcome;
  for (size_t i = 0; i < text.size(); i += piece) {
    StopMatcher::Result result = matcher.Push(text.substr(i, piece));
    outcome.text += result.text;
    if (result.stopped) return {outcome.text, true};
  }
  outcome.text += matcher.Flush();
  return outcome;
}

// By definition: the first end of a stop string, and of those that end there the longest.
Outcome MatchNaively(const std::vector<std::string>& stops, std::string_view text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {std::string(text.substr(0, end - longest)), true};
  }
  return {std::string(text), false};
}

TEST(StopMatcherTest, EndsTheTextBeforeAStopString) {
  EXPECT_EQ(Match({"END"}, "one END two", 11), (Outcome{"one ", true}));
  EXPECT_EQ(Match({"END"}, "one EN two", 3), (Outcome{"one EN two", false}));
  EXPECT_EQ(Match({"END"}, "END", 1), (Outcome{"", true}));
  EXPECT_EQ(Match({}, "anything", 3), (Outcome{"anything", false}));
  EXPECT_EQ(Match({"", "g"}, "anything", 3), (Outcome{"anythin", true}));
}

TEST(StopMatcherTest, NeverLeaksABeginning) {
  StopMatcher matcher({"</answer>", "\n\n"});
  EXPECT_EQ(matcher.Push("x </ans").text, "x ");
  EXPECT_EQ(matcher.Push("wer").text, "");
  EXPECT_EQ(matcher.Push("!\n").text, "</answer!");
  const StopMatcher::Result last = matcher.Push("\nmore");
  EXPECT_TRUE(last.stopped);
  EXPECT_EQ(last.text, "");
}

TEST(StopMatcherTest, GivesBackWhatWasHeldWhenTheTextEnds) {
  StopMatcher matcher({"stop here"});
  EXPECT_EQ(matcher.Push("so stop her").text, "so ");
  EXPECT_EQ(matcher.Flush(), "stop her");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcherTest, FindsAStopStringThatBeginsWithinAFailedOne) {
  EXPECT_EQ(Match({"aab"}, "aaab", 1), (Outcome{"a", true}));
  EXPECT_EQ(Match({"abcX", "bcd"}, "abcd", 1), (Outcome{"a", true}));
  EXPECT_EQ(Match({"abcd", "bc"}, "abcd", 1), (Outcome{"a", true}));  // complete first
  EXPECT_EQ(Match({"bc", "abc"}, "abc", 1), (Outcome{"", true}));     // both: the longer
}

TEST(StopMatcherTest, AgreesWithTheDefinitionHoweverTheTextIsCut) {
  std::mt19937 rng(1);
  const auto random_text = [&](size_t size) {
    std::string text(size, '\0');
    for (char& c : text) c = static_cast<char>('a' + rng() % 2);
    return text;
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> stops;
    for (size_t n = rng() % 5; n > 0; --n) stops.push_back(random_text(3 + rng() % 6));
    const std::string text = random_text(rng() % 40);
    const Outcome expected = MatchNaively(stops, text);
    for (size_t piece : {1, 2, 3, 7, 40}) {
      ASSERT_EQ(Match(stops, text, piece), expected)
          << testing::PrintToString(stops) << " in " << text << " by " << piece;
    }
  }
}

TEST(StopMatcherTest, HandlesManyLongStopStringsThatNearlyMatch) {
  std::vector<std::string> stops;
  for (char c = 'A'; c < 'A' + 16; ++c) stops.push_back(std::string(1023, 'x') + c);
  StopMatcher matcher(stops);
  std::string shown;
  for (int i = 0; i < 2000; ++i) shown += matcher.Push("xxxx").text;
  EXPECT_EQ(shown.size(), 8000u - 1023u);
  EXPECT_TRUE(matcher.Push("P").stopped);
}

}  // namespace
}  // namespace whit
