#include "tests/eval/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/support/tiny_model.h"

namespace whit::eval {
namespace {

using testing::HasSubstr;

TaskItem ParseOne(std::string_view task, std::string_view line) {
  const auto items = ParseTask(task, line);
  EXPECT_TRUE(items.ok()) << items.status().message();
  EXPECT_EQ(items->size(), 1u);
  return items->front();
}

TEST(ParseTaskTest, HellaSwagCapitalizesTheSecondSentence) {
  // The offset counts characters.
  const TaskItem item = ParseOne(
      "hellaswag",
      R"({"activity_label": "Cooking", "ctx": "Á man cooks. then HE", "ctx_b_start": 13, "endings": ["eats it.", "sleeps."], "label": 1, "ind": null})");
  ASSERT_EQ(item.choices.size(), 2u);
  EXPECT_EQ(item.choices[0].context, "Cooking: Á man cooks. Then he");
  EXPECT_EQ(item.choices[1].continuation, " sleeps.");
  EXPECT_EQ(item.gold, 1);
  EXPECT_TRUE(item.per_byte);
  const TaskItem plain = ParseOne(
      "hellaswag",
      R"({"activity_label": "A", "ctx": "b c", "ctx_b_start": null, "endings": ["d", "e"], "label": 0})");
  EXPECT_EQ(plain.choices[0].context, "A: b c");
}

TEST(ParseTaskTest, AsksQuestions) {
  constexpr char kLine[] = R"({"id": "7", "query": "Why?", "choices": ["x", "y", "z"], "gold": 2})";
  for (const char* task : {"arc_easy", "arc", "piqa"}) {
    const TaskItem item = ParseOne(task, kLine);
    ASSERT_EQ(item.choices.size(), 3u);
    EXPECT_EQ(item.choices[1].context, "Question: Why?\nAnswer:");
    EXPECT_EQ(item.choices[1].continuation, " y");
    EXPECT_EQ(item.gold, 2);
  }
  EXPECT_EQ(ParseOne("openbookqa", kLine).choices[0].context, "Why?");
}

TEST(ParseTaskTest, WinograndeScoresTheSuffixAlone) {
  const TaskItem item =
      ParseOne("winogrande",
               R"({"query": "Ann met Bea and _ waved.", "choices": ["Ann", "Bea"], "gold": 0})");
  EXPECT_EQ(item.choices[1].context, "Ann met Bea and Bea");
  EXPECT_EQ(item.choices[1].continuation, " waved.");
  EXPECT_FALSE(item.per_byte);
}

TEST(ParseTaskTest, LambadaHasOneContinuation) {
  const TaskItem item = ParseOne("lambada_openai", R"({"context": "Go to", "target": "bed"})");
  ASSERT_EQ(item.choices.size(), 1u);
  EXPECT_EQ(item.choices[0].continuation, " bed");
}

TEST(ParseTaskTest, SaysWhichLineIsWrongAndWhy) {
  const auto error = [](std::string_view task, std::string_view lines) {
    return std::string(ParseTask(task, lines).status().message());
  };
  constexpr char kGood[] = R"({"query": "q", "choices": ["a", "b"], "gold": 0})";
  EXPECT_THAT(error("boolq", kGood), HasSubstr("hellaswag, arc, piqa"));
  EXPECT_THAT(error("piqa", ""), HasSubstr("no items"));
  EXPECT_THAT(error("piqa", std::string(kGood) + "\n{oops"), HasSubstr("line 2 is no JSON"));
  EXPECT_THAT(error("piqa", std::string(kGood) + "\n\n" + R"({"query": 3})"),
              HasSubstr("line 3: 'choices'"));
  EXPECT_THAT(error("piqa", R"({"query": "", "choices": ["a", "b"], "gold": 0})"),
              HasSubstr("'query'"));
  EXPECT_THAT(error("piqa", R"({"query": "q", "choices": ["a"], "gold": 0})"),
              HasSubstr("at least two"));
  for (const char* gold : {"2", "-1", "\"A\"", "null"}) {
    EXPECT_THAT(error("piqa", std::string(R"({"query": "q", "choices": ["a", "b"], "gold": )") +
                                  gold + "}"),
                HasSubstr("'gold' must be an index below 2"))
        << gold;
  }
  EXPECT_THAT(error("winogrande", kGood), HasSubstr("'query'"));
}

class ScoredItemsTest : public testing::Test {
 protected:
  ScoredItemsTest()
      : bytes_(MakeTinyModel().Build()),
        file_(GgufFile::Parse(bytes_).value()),
        tokenizer_(Tokenizer::Create(*file_).value()) {}

  std::string Text(const std::vector<int32_t>& tokens) const {
    std::string text;
    for (int32_t id : tokens) text += tokenizer_->TokenBytes(id);
    return text;
  }
  std::string ScoredText(const Sequence& sequence) const {
    std::string text;
    for (int32_t id : sequence.targets) {
      if (id != Sequence::kNotScored) text += tokenizer_->TokenBytes(id);
    }
    return text;
  }

  const std::vector<std::byte> bytes_;
  const std::unique_ptr<GgufFile> file_;
  const std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(ScoredItemsTest, ScoresTheContinuationAndRunsAllButItsLastToken) {
  const TaskItem item = {
      .choices = {{"the cat", " went home"}, {"the cat", " sat"}}, .gold = 1, .per_byte = true};
  const auto scored = MakeScoredItems({item}, *tokenizer_, {.context_length = 100});
  ASSERT_TRUE(scored.ok());
  const ScoredItem& first = scored->front();
  ASSERT_EQ(first.choices.size(), 2u);
  EXPECT_EQ(ScoredText(first.choices[0]), " went home");
  EXPECT_EQ(Text(first.choices[1].tokens) +
                std::string(tokenizer_->TokenBytes(first.choices[1].targets.back())),
            "the cat sat");
  EXPECT_EQ(first.bytes, (std::vector<int>{9, 3}));
  EXPECT_EQ(first.gold, 1);
}

TEST_F(ScoredItemsTest, PutsOtherSolvedItemsBefore) {
  std::vector<TaskItem> items;
  for (char c = 'a'; c <= 'e'; ++c) {
    const std::string name(1, c);
    items.push_back(
        {.choices = {{name, absl::StrCat(" ", name, "0")}, {name, absl::StrCat(" ", name, "1")}},
         .gold = 1});
  }
  const auto scored =
      MakeScoredItems(items, *tokenizer_, {.prefix_tokens = 14, .context_length = 100});
  ASSERT_TRUE(scored.ok());
  // What is in "a a1\n\n" takes 5 or 6 tokens, so two fit.
  EXPECT_EQ(Text((*scored)[1].choices[0].tokens), "c c1\n\nd d1\n\nb b");
  EXPECT_EQ(ScoredText((*scored)[1].choices[0]), " b0");
  EXPECT_EQ(Text((*scored)[4].choices[0].tokens).substr(0, 12), "a a1\n\nb b1\n\n");
}

TEST_F(ScoredItemsTest, SpreadsTheLimitOverTheFile) {
  std::vector<TaskItem> items;
  for (int i = 0; i < 10; ++i) {
    items.push_back({.choices = {{"x", absl::StrCat(" ", i)}}});
  }
  const auto scored = MakeScoredItems(items, *tokenizer_, {.limit = 3, .context_length = 100});
  ASSERT_TRUE(scored.ok());
  ASSERT_EQ(scored->size(), 3u);
  EXPECT_EQ(ScoredText((*scored)[0].choices[0]), " 0");
  EXPECT_EQ(ScoredText((*scored)[1].choices[0]), " 3");
  EXPECT_EQ(ScoredText((*scored)[2].choices[0]), " 6");
}

TEST_F(ScoredItemsTest, RefusesAnItemBeyondTheContext) {
  const TaskItem item = {.choices = {{std::string(50, '?'), " ok"}}};
  const auto scored = MakeScoredItems({item}, *tokenizer_, {.context_length = 40});
  EXPECT_THAT(std::string(scored.status().message()), HasSubstr("item 1 has 5"));
}

}  // namespace
}  // namespace whit::eval
