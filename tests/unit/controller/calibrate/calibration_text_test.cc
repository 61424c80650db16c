#include "controller/calibrate/calibration_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "tests/unit/support/process_temp_dir.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class ReadCalibrationTextTest : public testing::Test {
 protected:
  ReadCalibrationTextTest() : folder_(fs::path(ProcessTempDir()) / "calibration_text_test") {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    const std::vector<std::byte> bytes = MakeTinyModel().Build();
    tokenizer_ = Tokenizer::Create(*GgufFile::Parse(bytes).value()).value();
  }
  ~ReadCalibrationTextTest() override { fs::remove_all(folder_); }

  absl::StatusOr<CalibrationText> Read(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return ReadCalibrationText((folder_ / name).string(), *tokenizer_);
  }
  std::string Error(const std::string& name, const std::string& content) const {
    return Read(name, content).status().ToString();
  }
  std::string Bytes(absl::Span<const int32_t> tokens) const {
    std::string text;
    for (int32_t token : tokens) text += tokenizer_->TokenBytes(token);
    return text;
  }

  const fs::path folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(ReadCalibrationTextTest, TextIsTokenizedAsItIs) {
  const std::string text = "The <|im_end|> of it.\r\n\n Grüße\n";
  const auto read = Read("a.txt", text);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->name, "a.txt");
  EXPECT_EQ(Bytes(read->tokens), text);
  for (int32_t token : read->tokens) EXPECT_FALSE(tokenizer_->IsSpecial(token));
}

TEST_F(ReadCalibrationTextTest, ChatsAreWrittenInTheModelsFormat) {
  const auto read = Read("a.jsonl", R"({"messages": [{"role": "system", "content": "S"},)"
                                    R"( {"role": "user", "content": "U"},)"
                                    R"( {"role": "assistant", "content": "A"}]})"
                                    "\n\n"
                                    R"({"messages": [{"role": "system", "content": "T"},)"
                                    R"( {"role": "user", "content": "V<|im_end|>"}], "source": 3})"
                                    "\n");
  ASSERT_TRUE(read.ok()) << read.status();
  // The first has an answer, which ends as a generated one does; the second is a prompt.
  EXPECT_EQ(Bytes(read->tokens),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
            "<|im_start|>assistant\nA<|im_end|>"
            "<|im_start|>system\nT<|im_end|>\n<|im_start|>user\nV<|im_end|><|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(std::count(read->tokens.begin(), read->tokens.end(), tokenizer_->eos_id()), 5);
}

TEST_F(ReadCalibrationTextTest, ErrorsSayWhere) {
  EXPECT_THAT(ReadCalibrationText((folder_ / "none").string(), *tokenizer_).status().ToString(),
              HasSubstr("none: no such file"));
  EXPECT_THAT(ReadCalibrationText(folder_.string(), *tokenizer_).status().ToString(),
              HasSubstr("a folder"));
  EXPECT_THAT(Error("empty.txt", ""), HasSubstr("empty.txt: no text in it"));
  EXPECT_THAT(Error("empty.jsonl", "\n \n"), HasSubstr("empty.jsonl: no text in it"));
  EXPECT_THAT(Error("bad.txt", "abc\xFF"), HasSubstr("bad.txt: "));

  const std::string good = R"({"messages": [{"role": "user", "content": "U"}]})";
  for (const char* bad :
       {"{", "[]", R"({"text": "a"})", R"({"messages": []})", R"({"messages": [{"role": "user"}]})",
        R"({"messages": [{"role": 1, "content": "a"}]})"}) {
    EXPECT_THAT(Error("a.jsonl", good + "\n" + bad), HasSubstr("a.jsonl: line 2: not of the form"))
        << bad;
  }
  EXPECT_THAT(Error("a.jsonl", R"({"messages": [{"role": "tool", "content": "U"}]})"),
              HasSubstr("line 1: message 0 has role"));
}

TEST_F(ReadCalibrationTextTest, OnlyTheBeginningOfALongFileIsRead) {
  std::string line(99, 'a'), text;
  line += '\n';
  while (text.size() < kMaxTextBytes) text += line;  // a line crosses the bound
  const auto lines = Read("lines.txt", text);
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(Bytes(lines->tokens).size(), kMaxTextBytes / 100 * 100 - 1);

  text.assign(kMaxTextBytes - 1, ' ');
  text += "ß";  // so does a character
  const auto one_line = Read("line.txt", text);
  ASSERT_TRUE(one_line.ok()) << one_line.status();
  EXPECT_EQ(Bytes(one_line->tokens).size(), kMaxTextBytes - 1);
}

// Texts whose tokens tell where they come from.
std::vector<CalibrationText> Texts(const std::vector<int>& sizes) {
  std::vector<CalibrationText> texts;
  for (int size : sizes) {
    texts.push_back({.name = "", .tokens = std::vector<int32_t>(size)});
    std::iota(texts.back().tokens.begin(), texts.back().tokens.end(),
              1'000'000 * static_cast<int32_t>(texts.size()));
  }
  return texts;
}

std::vector<TextWindow> Draw(const std::vector<CalibrationText>& texts,
                             const WindowOptions& options) {
  const auto windows = DrawWindows(texts, options);
  EXPECT_TRUE(windows.ok()) << windows.status();
  return windows.value_or(std::vector<TextWindow>());
}

TEST(DrawWindowsTest, WindowsAreConsecutiveTokensWithoutOverlap) {
  const auto texts = Texts({5000, 1030});
  std::set<int32_t> seen;
  size_t tokens = 0;
  for (const TextWindow& window : Draw(texts, {.tokens = 1 << 20, .context = 200, .seed = 1})) {
    EXPECT_GE(window.tokens.size(), kMinWindowTokens);
    EXPECT_LE(window.tokens.size(), 200);
    for (size_t i = 0; i < window.tokens.size(); ++i) {
      EXPECT_EQ(window.tokens[i], window.tokens[0] + static_cast<int32_t>(i));
      EXPECT_EQ(window.tokens[i] / 1'000'000, window.text + 1);
      EXPECT_TRUE(seen.insert(window.tokens[i]).second);
    }
    tokens += window.tokens.size();
  }
  EXPECT_EQ(tokens, 5000 + 1000);  // the rest of 30 is too short
}

TEST(DrawWindowsTest, TextsGiveAlikeWhereTheyCan) {
  std::map<int, size_t> tokens;
  std::map<int, size_t> held_out;
  for (const TextWindow& window :
       Draw(Texts({50000, 400, 30000}), {.tokens = 20000, .context = 100, .seed = 1})) {
    tokens[window.text] += window.tokens.size();
    held_out[window.text] += window.held_out ? window.tokens.size() : 0;
  }
  EXPECT_EQ(tokens[0], 9800);
  EXPECT_EQ(tokens[1], 400);
  EXPECT_EQ(tokens[2], 9800);
  EXPECT_EQ(held_out[0], 1300);  // the 2nd, 10th, … of 98 windows
  EXPECT_EQ(held_out[1], 100);
}

TEST(DrawWindowsTest, TheSeedDecidesWhichAreDrawn) {
  const auto texts = Texts({50000});
  const auto firsts = [&](uint64_t seed) {
    std::vector<int32_t> tokens;
    for (const TextWindow& w : Draw(texts, {.tokens = 2000, .context = 100, .seed = seed})) {
      tokens.push_back(w.tokens[0]);
    }
    return tokens;
  };
  EXPECT_EQ(firsts(1), firsts(1));
  EXPECT_NE(firsts(1), firsts(2));
}

TEST(DrawWindowsTest, ABeginOfTextTokenGoesFirst) {
  for (const TextWindow& window :
       Draw(Texts({1000}), {.tokens = 1000, .context = 100, .seed = 1, .bos_id = 7})) {
    EXPECT_EQ(window.tokens[0], 7);
    EXPECT_LE(window.tokens.size(), 100);
    EXPECT_EQ(window.tokens[1] % 99, 1'000'000 % 99);
  }
}

TEST(DrawWindowsTest, SomethingIsAlwaysHeldOut) {
  const auto windows = Draw(Texts({1000, 1000, 1000}), {.tokens = 100, .context = 100});
  ASSERT_EQ(windows.size(), 4);
  EXPECT_TRUE(windows[3].held_out);
}

TEST(DrawWindowsTest, TooLittleTextIsAnError) {
  for (const std::vector<int>& sizes : {std::vector<int>{}, {40}, {100}, {100, 100}, {130}}) {
    EXPECT_THAT(DrawWindows(Texts(sizes), {.tokens = 1000, .context = 100}).status().ToString(),
                HasSubstr("too little text"));
  }
  EXPECT_THAT(DrawWindows(Texts({130}), {.tokens = 1000, .context = 100}).status().ToString(),
              HasSubstr("the longest file has 130 tokens, but one at least must have 164"));
  EXPECT_EQ(Draw(Texts({164}), {.tokens = 1000, .context = 100}).size(), 2);
}

TEST(DrawMixedWindowsTest, KindsNeverOverlap) {
  const auto texts = Texts({30000, 6000});
  const auto windows = DrawMixedWindows(
      texts, {.contexts = {256, 1024, 4096}, .tokens = 8000, .seed = 1, .bos_id = 7});
  ASSERT_TRUE(windows.ok()) << windows.status();
  std::set<int32_t> seen[2];
  std::map<size_t, size_t> tokens[2];  // of each length
  for (const TextWindow& window : *windows) {
    EXPECT_EQ(window.tokens[0], 7);
    for (size_t i = 1; i < window.tokens.size(); ++i) {
      EXPECT_EQ(window.tokens[i], window.tokens[1] + static_cast<int32_t>(i) - 1);
      EXPECT_EQ(window.tokens[i] / 1'000'000, window.text + 1);
      seen[window.held_out ? 1 : 0].insert(window.tokens[i]);
      EXPECT_FALSE(seen[window.held_out ? 0 : 1].contains(window.tokens[i]));
    }
    tokens[window.held_out ? 1 : 0][window.tokens.size()] += window.tokens.size();
  }
  // The longest come first.
  EXPECT_EQ(windows->front().tokens.size(), 4096);
  EXPECT_LE(windows->back().tokens.size(), 256);
  for (size_t context : {1024, 4096}) {
    EXPECT_GE(tokens[0][context], 8000);
    EXPECT_LT(tokens[0][context], 8000 + context);
    EXPECT_GE(tokens[1][context], 2000);
    EXPECT_LT(tokens[1][context], 2000 + context);
  }
}

TEST(DrawMixedWindowsTest, LengthsThatNoTextHasAreLeftOut) {
  const auto windows =
      DrawMixedWindows(Texts({5000, 3000}), {.contexts = {512, 2048, 8192}, .tokens = 1000});
  ASSERT_TRUE(windows.ok()) << windows.status();
  for (const TextWindow& window : *windows) {
    EXPECT_EQ(window.context, 512);
    EXPECT_LE(window.tokens.size(), 512);
    EXPECT_GE(window.tokens.size(), kMinMixedWindowTokens);
  }

  // Of the shortest length, less will do.
  const auto few = DrawMixedWindows(Texts({1000}), {.contexts = {512, 2048}, .tokens = 10000});
  ASSERT_TRUE(few.ok()) << few.status();
  ASSERT_EQ(few->size(), 3);
  EXPECT_EQ((*few)[0].tokens.size() + (*few)[1].tokens.size(), 800);
  EXPECT_EQ((*few)[2].tokens.size(), 200);
  EXPECT_TRUE((*few)[2].held_out);

  EXPECT_THAT(
      DrawMixedWindows(Texts({900, 30}), {.contexts = {512}, .tokens = 10000}).status().ToString(),
      HasSubstr("too little text: the longest file has 900 tokens, but one at least must "
                "have 960"));
}

}  // namespace
}  // namespace whit
