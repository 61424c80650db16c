#include "runtime/text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace whit {
namespace {

using Words = std::vector<std::string>;

Words Split(const PreTokenizer& pre_tokenizer, std::string_view text) {
  Words words;
  const absl::Status status =
      pre_tokenizer.Split(text, [&](std::string_view word) { words.emplace_back(word); });
  EXPECT_TRUE(status.ok()) << status;
  return words;
}

struct Case {
  std::string_view text;
  Words words;
};

void ExpectSplits(std::string_view name, const std::vector<Case>& cases) {
  const auto pre_tokenizer = PreTokenizer::Create(name);
  ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  for (const auto& [text, words] : cases) EXPECT_EQ(Split(**pre_tokenizer, text), words) << name;
}

// Expected words are those of Hugging Face's tokenizers.

TEST(PreTokenizerTest, Gpt2) {
  ExpectSplits("gpt-2",
               {
                   {"", {}},
                   {"Hello world, it's 2024!", {"Hello", " world", ",", " it", "'s", " 2024", "!"}},
                   {"IT'S we'Ll", {"IT", "'", "S", " we", "'", "Ll"}},
                   {"a  b   c \n\n d\t\te  ",
                    {"a", " ", " b", "  ", " c", " \n\n", " d", "\t", "\t", "e", "  "}},
                   {"x\r\n\r\n  y\n", {"x", "\r\n\r\n ", " y", "\n"}},
                   {"3.14159 \u00BD7", {"3", ".", "14159", " \u00BD7"}},
                   {" 12  34", {" 12", " ", " 34"}},
                   {"$100 (ok)...\n\n", {"$", "100", " (", "ok", ")...", "\n\n"}},
                   {"'\u017F don\u2019t", {"'", "\u017F", " don", "\u2019", "t"}},
                   {"\u4F60\u597D1\u4E16\u754C", {"\u4F60\u597D", "1", "\u4E16\u754C"}},
                   {"\U0001F468\u200D\U0001F469 ok", {"\U0001F468\u200D\U0001F469", " ok"}},
               });
}

TEST(PreTokenizerTest, SmolLmTakesDigitsAloneAndFirst) {
  ExpectSplits("smollm",
               {
                   {"it's 2024!", {"it", "'s", " ", "2", "0", "2", "4", "!"}},
                   {"a  b   c \n\n d\t\te  ",
                    {"a", " ", " b", "  ", " c", " \n\n", " d", "\t", "\t", "e", "  "}},
                   {"3.14159 \u00BD7", {"3", ".", "1", "4", "1", "5", "9", " ", "\u00BD", "7"}},
                   {" 12  34", {" ", "1", "2", "  ", "3", "4"}},
                   {"$100 (ok)...\n\n", {"$", "1", "0", "0", " (", "ok", ")...", "\n\n"}},
                   {"IT'S we'Ll", {"IT", "'", "S", " we", "'", "Ll"}},
               });
}

TEST(PreTokenizerTest, Llama3) {
  ExpectSplits("llama-bpe", {
                                {"Hello world, it's 2024!",
                                 {"Hello", " world", ",", " it", "'s", " ", "202", "4", "!"}},
                                {"IT'S we'Ll", {"IT", "'S", " we", "'Ll"}},
                                {"a  b   c \n\n d\t\te  ",
                                 {"a", " ", " b", "  ", " c", " \n\n", " d", "\t", "\te", "  "}},
                                {"x\r\n\r\n  y\n", {"x", "\r\n\r\n", " ", " y", "\n"}},
                                {"3.14159 \u00BD7", {"3", ".", "141", "59", " ", "\u00BD7"}},
                                {"$100 (ok)...\n\n", {"$", "100", " (", "ok", ")...\n\n"}},
                                {"'\u017F don\u2019t", {"'\u017F", " don", "\u2019t"}},
                            });
}

TEST(PreTokenizerTest, Qwen2) {
  ExpectSplits("qwen2", {
                            {" 12  34", {" ", "1", "2", " ", " ", "3", "4"}},
                            {"IT'S we'Ll", {"IT", "'S", " we", "'Ll"}},
                            {"$100 (ok)...\n\n", {"$", "1", "0", "0", " (", "ok", ")...\n\n"}},
                        });
}

TEST(PreTokenizerTest, WhiteSpaceIsUnicodes) {
  // U+180E is not white space any more, whatever PCRE2 thinks of it; U+0085 and U+00A0 are.
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    ExpectSplits(name, {{"!\u180E! \u180E\u180E", {"!\u180E!", " \u180E\u180E"}},
                        {"\u0085\u3000.", {"\u0085", "\u3000", "."}},
                        {"e\u0301\u00A0\u00A0!", {"e", "\u0301", "\u00A0", "\u00A0", "!"}}});
  }
}

TEST(PreTokenizerTest, AMissingNameIsGpt2AndAliasesShareAnExpression) {
  ExpectSplits("", {{" 12  34", {" 12", " ", " 34"}}});
  ExpectSplits("default", {{" 12  34", {" 12", " ", " 34"}}});
  ExpectSplits("starcoder", {{" 12  34", {" ", "1", "2", "  ", "3", "4"}}});
  ExpectSplits("llama3", {{"2024", {"202", "4"}}});
  ExpectSplits("deepseek-r1-qwen", {{"20", {"2", "0"}}});
}

TEST(PreTokenizerTest, OnlyLlama3sOwnTakeWholeWordsAndABeginningByDefault) {
  struct Expected {
    const char* name;
    bool whole_words_first, add_bos;
  };
  for (const auto& [name, whole_words_first, add_bos] :
       {Expected{"llama-bpe", true, true}, {"dbrx", false, false}, {"smollm", false, false}}) {
    const auto pre_tokenizer = PreTokenizer::Create(name);
    ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
    EXPECT_EQ((*pre_tokenizer)->whole_words_first(), whole_words_first) << name;
    EXPECT_EQ((*pre_tokenizer)->add_bos_by_default(), add_bos) << name;
  }
}

TEST(PreTokenizerTest, AnUnknownNameIsUnimplemented) {
  const auto pre_tokenizer = PreTokenizer::Create("tekken");
  EXPECT_EQ(pre_tokenizer.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(pre_tokenizer.status().message()), testing::HasSubstr("'tekken'"));
}

TEST(PreTokenizerTest, SplitsLongRunsWithoutRunningIntoALimit) {
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    const auto pre_tokenizer = PreTokenizer::Create(name);
    ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
    constexpr size_t kLong = 1 << 20;
    const std::string letters(kLong, 'x'), spaces(kLong, ' '), punctuation(kLong, '=');
    EXPECT_THAT(Split(**pre_tokenizer, letters), testing::ElementsAre(letters));
    EXPECT_THAT(Split(**pre_tokenizer, punctuation), testing::ElementsAre(punctuation));
    EXPECT_THAT(Split(**pre_tokenizer, spaces + "x"), testing::ElementsAre(spaces.substr(1), " x"));
  }
}

}  // namespace
}  // namespace whit
