#include "runtime/text/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace whit {
namespace {

constexpr char kReplacement[] = "\uFFFD";

std::string Repeat(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(FindInvalidUtf8Test, AcceptsTheEdgesOfWellFormedText) {
  for (std::string_view text : {"", "plain ASCII, longer than one word of eight bytes",
                                "\u0080\u07FF", "\u0800\uD7FF\uE000", "\uFFFF\U00010000\U0010FFFF",
                                "seven7 \u00E9 and more text after it"}) {
    EXPECT_EQ(FindInvalidUtf8(text), std::string_view::npos) << text;
  }
  EXPECT_EQ(FindInvalidUtf8(std::string_view("a\0b", 3)), std::string_view::npos);
}

TEST(FindInvalidUtf8Test, PointsAtTheFirstByteThatIsNotPartOfACharacter) {
  struct Case {
    std::string_view text;
    size_t offset;
  };
  for (const auto& [text, offset] : std::vector<Case>{
           {"\x80", 0},
           {"abc\xFF", 3},
           {"0123456789abcdef\xC3", 16},  // cut
           {"\u00E9\xE2\x82", 2},         // cut
           {"a\xC0\x80", 1},              // overlong
           {"a\xC1\xBF", 1},              // overlong
           {"a\xE0\x9F\xBF", 1},          // overlong
           {"a\xF0\x8F\xBF\xBF", 1},      // overlong
           {"a\xED\xA0\x80", 1},          // surrogate
           {"a\xF4\x90\x80\x80", 1},      // above U+10FFFF
           {"a\xF5\x80\x80\x80", 1},
           {"\U0001F600\xF0\x9F\x98z", 4},  // a third byte, then something else
       }) {
    EXPECT_EQ(FindInvalidUtf8(text), offset) << testing::PrintToString(text);
  }
}

// What a stream gives for `bytes`, cut into pieces of `piece` bytes.
std::string Decode(std::string_view bytes, size_t piece) {
  Utf8Stream stream;
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += piece) {
    const std::string part = stream.Push(bytes.substr(i, piece));
    EXPECT_EQ(FindInvalidUtf8(part), std::string_view::npos);
    text += part;
  }
  return text + stream.Flush();
}

TEST(Utf8StreamTest, SubstitutesMaximalSubpartsHoweverTheBytesAreCut) {
  struct Case {
    std::string_view bytes;
    std::string text;
  };
  // The last three are the examples of the Unicode Standard, section 3.9.
  for (const auto& [bytes, text] : std::vector<Case>{
           {"plain", "plain"},
           {"\u00E9\u4E2D\U0001F600", "\u00E9\u4E2D\U0001F600"},
           {"a\xFF\xFE z", std::string("a") + kReplacement + kReplacement + " z"},
           {"\xE4\xB8", kReplacement},
           {"\xF0\x9F\x98", kReplacement},
           {"\xF0\x9F\x98x", std::string(kReplacement) + "x"},
           {"\xE4\xB8\xE4\xB8\xAD", std::string(kReplacement) + "\u4E2D"},
           {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", Repeat(kReplacement, 8) + "A"},
           {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", Repeat(kReplacement, 8) + "A"},
           {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42",
            Repeat(kReplacement, 5) + "A" + Repeat(kReplacement, 2) + "B"},
           {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", Repeat(kReplacement, 4) + "A"},
       }) {
    for (size_t piece = 1; piece <= bytes.size(); ++piece) {
      EXPECT_EQ(Decode(bytes, piece), text) << testing::PrintToString(bytes) << " by " << piece;
    }
  }
}

TEST(Utf8StreamTest, HoldsBackOnlyACharacterThatMayStillBecomeWhole) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.Push("\x98"), "");
  EXPECT_EQ(stream.Push("\x80!"), "\U0001F600!");
  EXPECT_EQ(stream.Push("\xE0"), "");
  EXPECT_EQ(stream.Push("\x80"), std::string(kReplacement) + kReplacement);  // never a character
  EXPECT_EQ(stream.Push("\xC3"), "");
  EXPECT_EQ(stream.Flush(), kReplacement);
  EXPECT_EQ(stream.Flush(), "");
  EXPECT_EQ(stream.Push("\xA9"), kReplacement);  // nothing is left of the character before
}

}  // namespace
}  // namespace whit
