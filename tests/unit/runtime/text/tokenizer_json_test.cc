#include "runtime/text/tokenizer_json.h"

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/unit/support/gguf_writer.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using nlohmann::json;

// Whether others make the same tokens of it is for tests/integration/test_vllm.py and
// tests/eval/compare_tokenizer.py, which ask them.
json Export(const GgufWriter& file) {
  const std::vector<std::byte> bytes = file.Build();
  const auto parsed = GgufFile::Parse(bytes);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  const auto tokenizer = Tokenizer::Create(**parsed);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = ToTokenizerJson(**tokenizer);
  EXPECT_EQ(text, ToTokenizerJson(**tokenizer));
  return json::parse(text);
}

TEST(TokenizerJsonTest, SpellsTokensAsTheFileDoes) {
  const json exported = Export(MakeTinyModel());
  const json& vocab = exported["model"]["vocab"];
  EXPECT_EQ(vocab["<|im_start|>"], 1);
  EXPECT_EQ(vocab["Ā"], 3);  // byte 0
  EXPECT_EQ(vocab["Ġ"], 3 + ' ');
  EXPECT_EQ(vocab["Ġthe"], 3 + 256 + 7);
  EXPECT_EQ(exported["model"]["merges"][7], json::array({"Ġt", "he"}));
}

TEST(TokenizerJsonTest, SpecialTokensAreAdded) {
  const json added = Export(MakeTinyModel())["added_tokens"];
  ASSERT_EQ(added.size(), 3u);
  EXPECT_EQ(added[2]["content"], "<|im_end|>");
  EXPECT_EQ(added[2]["id"], 2);
  EXPECT_EQ(added[2]["special"], true);
}

TEST(TokenizerJsonTest, WholeWordsAndBeginOfTextAreTheModels) {
  const json plain = Export(MakeTinyModel());
  EXPECT_EQ(plain["model"]["ignore_merges"], false);
  EXPECT_TRUE(plain["post_processor"].is_null());
  const json llama = Export(MakeTinyModel({.pre_tokenizer = "llama-bpe", .add_bos = true}));
  EXPECT_EQ(llama["model"]["ignore_merges"], true);
  EXPECT_EQ(llama["post_processor"]["single"][0]["SpecialToken"]["id"], "<|im_start|>");
  EXPECT_EQ(llama["post_processor"]["special_tokens"]["<|im_start|>"]["ids"], json::array({1}));
}

}  // namespace
}  // namespace whit
