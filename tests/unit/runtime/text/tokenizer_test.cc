#include "runtime/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tests/unit/support/gguf_writer.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

// Ids of the tiny model: three control tokens, the bytes, merges.
constexpr int32_t kEndOfText = 0, kImStart = 1, kImEnd = 2, kFirstByte = 3;
constexpr int32_t kControl = 3, kUserDefined = 4;  // token types of the format

absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufWriter& writer) {
  const std::vector<std::byte> bytes = writer.Build();
  const auto file = GgufFile::Parse(bytes);
  if (!file.ok()) return file.status();
  return Tokenizer::Create(**file);  // needs the file no longer
}

GgufWriter TinyFile() {
  GgufWriter file = MakeTinyModel();
  file.tensors.clear();
  return file;
}

template <typename T>
std::vector<T> GetArray(const GgufWriter& file, std::string_view key) {
  for (const auto& [name, value] : file.metadata) {
    if (name == key) return std::get<std::vector<T>>(std::get<GgufWriter::Array>(value));
  }
  return {};
}

int32_t AddToken(GgufWriter& file, const std::string& token, int32_t type) {
  auto tokens = GetArray<std::string>(file, "tokenizer.ggml.tokens");
  auto types = GetArray<int32_t>(file, "tokenizer.ggml.token_type");
  tokens.push_back(token);
  types.push_back(type);
  file.Set("tokenizer.ggml.tokens", GgufWriter::Array(tokens));
  file.Set("tokenizer.ggml.token_type", GgufWriter::Array(types));
  return static_cast<int32_t>(tokens.size()) - 1;
}

class TokenizerTest : public testing::Test {
 protected:
  void Load(const GgufWriter& file) {
    auto tokenizer = Create(file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  void SetUp() override { Load(TinyFile()); }

  std::vector<int32_t> Encode(std::string_view text, bool parse_special = false) const {
    const auto ids = tokenizer_->Encode(text, parse_special);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.value_or(std::vector<int32_t>());
  }
  // The bytes of each token.
  std::vector<std::string> Pieces(std::string_view text) const {
    std::vector<std::string> pieces;
    for (int32_t id : Encode(text)) pieces.emplace_back(tokenizer_->TokenBytes(id));
    return pieces;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TokenizerTest, MergesWithinWords) {
  EXPECT_THAT(Pieces("hello world"), ElementsAre("hello", " world"));
  EXPECT_THAT(Pieces("the them 42"), ElementsAre("t", "he", " the", "m", " ", "4", "2"));
  EXPECT_THAT(Pieces(""), ElementsAre());
}

TEST_F(TokenizerTest, EveryTextComesBackFromItsTokens) {
  for (std::string_view text :
       {"Hello, world!\r\n\t  x", "na\u00EFve caf\u00E9 \u4E2D\u6587 \U0001F468\u200D\U0001F469",
        "\x01\x7F\u00AD\u00A0", "<|im_start|>"}) {
    std::string bytes;
    for (int32_t id : Encode(text)) bytes += tokenizer_->TokenBytes(id);
    EXPECT_EQ(bytes, text);
  }
}

TEST_F(TokenizerTest, SpecialTokensAreParsedOnlyWhenAsked) {
  EXPECT_THAT(Encode("<|im_end|>", true), ElementsAre(kImEnd));
  const std::vector<int32_t> as_text = Encode("<|im_end|>");
  EXPECT_GT(as_text.size(), 1u);
  EXPECT_EQ(std::count(as_text.begin(), as_text.end(), kImEnd), 0);
}

TEST_F(TokenizerTest, SegmentsAreOneTextInWhichOnlySomeSpecialTokensCount) {
  const std::vector<TextSegment> segments = {
      {"<|im_start|>hel", true}, {"lo<|im_end|>", false}, {"<|im_", true}, {"end|>", true}};
  const auto ids = tokenizer_->EncodeSegments(segments);
  ASSERT_TRUE(ids.ok()) << ids.status();
  std::vector<int32_t> expected = {kImStart};
  for (int32_t id : Encode("hello<|im_end|>")) expected.push_back(id);
  expected.push_back(kImEnd);
  EXPECT_EQ(*ids, expected);
}

TEST_F(TokenizerTest, ASpecialTokenMustNotReachIntoASegmentWithoutThem) {
  const auto ids = tokenizer_->EncodeSegments(std::vector<TextSegment>{
      {"<|im_", true}, {"end|>", false}, {"<|im_end|", true}, {">", false}});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, Encode("<|im_end|><|im_end|>"));
}

TEST_F(TokenizerTest, InvalidUtf8IsRefusedWithItsPlace) {
  const auto ids = tokenizer_->Encode("ab\xFF", false);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 2"));

  // Halves of a character do not make one across segments.
  const auto segments = tokenizer_->EncodeSegments(
      std::vector<TextSegment>{{"ok", true}, {"\xC3", false}, {"\xA9", false}});
  EXPECT_EQ(segments.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(segments.status().message()), HasSubstr("segment 1"));
}

TEST_F(TokenizerTest, KnowsItsSpecialTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 318);
  EXPECT_FALSE(tokenizer_->add_bos());
  EXPECT_EQ(tokenizer_->bos_id(), kImStart);
  EXPECT_EQ(tokenizer_->eos_id(), kImEnd);
  // By key and by spelling.
  EXPECT_THAT(tokenizer_->end_of_generation_ids(), ElementsAre(kEndOfText, kImEnd));
  EXPECT_TRUE(tokenizer_->IsEndOfGeneration(kImEnd));
  EXPECT_FALSE(tokenizer_->IsEndOfGeneration(kImStart));
  EXPECT_TRUE(tokenizer_->IsSpecial(kImStart));
  EXPECT_FALSE(tokenizer_->IsSpecial(kFirstByte));
  EXPECT_EQ(tokenizer_->TokenBytes(kImStart), "<|im_start|>");
  EXPECT_EQ(tokenizer_->TokenBytes(kFirstByte + 0xE9), "\xE9");
  EXPECT_THAT(std::string(tokenizer_->chat_template()), HasSubstr("<|im_start|>"));
}

TEST_F(TokenizerTest, EndsGenerationWhereKeysAndSpellingsSaySo) {
  GgufWriter file = TinyFile();
  const int32_t by_key = AddToken(file, "<turn over>", kControl);
  const int32_t by_spelling = AddToken(file, "<|eot_id|>", 1);  // though the file calls it ordinary
  const int32_t file_separator = AddToken(file, "<|file_sep|>", kControl);
  const int32_t repository = AddToken(file, "<|repo_name|>", kControl);
  const int32_t other_repository = AddToken(file, "<reponame>", kControl);
  file.Set("tokenizer.ggml.eot_token_id", static_cast<uint32_t>(by_key));
  file.Remove("tokenizer.ggml.eos_token_id");
  Load(file);
  EXPECT_THAT(tokenizer_->end_of_generation_ids(),
              ElementsAre(kEndOfText, kImEnd, by_key, by_spelling, file_separator, repository));
  EXPECT_EQ(tokenizer_->eos_id(), -1);
  EXPECT_TRUE(tokenizer_->IsSpecial(by_spelling));
  EXPECT_THAT(Encode("<|eot_id|>", true), ElementsAre(by_spelling));

  file.Set("tokenizer.ggml.fim_rep_token_id", static_cast<uint32_t>(other_repository));
  Load(file);
  EXPECT_TRUE(tokenizer_->IsEndOfGeneration(other_repository));
  EXPECT_FALSE(tokenizer_->IsEndOfGeneration(repository));
}

TEST_F(TokenizerTest, UserDefinedTokensCountAlways) {
  GgufWriter file = TinyFile();
  const int32_t tool = AddToken(file, "<tool>", kUserDefined);
  Load(file);
  EXPECT_THAT(Encode("<tool>", false), ElementsAre(tool));
  EXPECT_FALSE(tokenizer_->IsSpecial(tool));
  const auto ids =
      tokenizer_->EncodeSegments(std::vector<TextSegment>{{"<to", true}, {"ol>", false}});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(*ids, ElementsAre(tool));
}

TEST_F(TokenizerTest, ABeginningOfTextIsTheFilesChoiceOrThePreTokenizers) {
  GgufWriter file = TinyFile();
  file.Remove("tokenizer.ggml.add_bos_token");
  Load(file);
  EXPECT_FALSE(tokenizer_->add_bos());
  file.Set("tokenizer.ggml.pre", std::string("llama-bpe"));
  Load(file);
  EXPECT_TRUE(tokenizer_->add_bos());
  file.Set("tokenizer.ggml.add_bos_token", false);
  Load(file);
  EXPECT_FALSE(tokenizer_->add_bos());
  EXPECT_THAT(Encode("hello"), testing::SizeIs(1));  // none is added here either way

  file.Set("tokenizer.ggml.add_bos_token", true);
  file.Remove("tokenizer.ggml.bos_token_id");
  EXPECT_EQ(Create(file).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TokenizerTest, Llama3TakesAWordThatIsATokenWhole) {
  GgufWriter file = TinyFile();
  const int32_t word = AddToken(file, "xyz", 1);  // no merge makes it
  AddToken(file, "abc", kControl);
  file.Set("tokenizer.ggml.pre", std::string("llama-bpe"));
  Load(file);
  EXPECT_THAT(Encode("xyz"), ElementsAre(word));
  EXPECT_THAT(Encode("abc"), testing::SizeIs(3));  // text never becomes a control token
  file.Set("tokenizer.ggml.pre", std::string("smollm"));
  Load(file);
  EXPECT_THAT(Encode("xyz"), testing::SizeIs(3));
}

TEST_F(TokenizerTest, GapsInTheVocabularyAndOptionalKeysAreFine) {
  GgufWriter file = TinyFile();
  const int32_t gap = AddToken(file, "", 5);
  AddToken(file, "", 3);
  const int32_t not_spelled_in_bytes = AddToken(file, "\u4E2D", 1);
  Load(file);
  EXPECT_EQ(tokenizer_->TokenBytes(gap), "");
  EXPECT_EQ(tokenizer_->TokenBytes(not_spelled_in_bytes), "\u4E2D");
  EXPECT_THAT(Pieces("hello"), ElementsAre("hello"));

  file = TinyFile();
  file.Remove("tokenizer.ggml.token_type");
  file.Remove("tokenizer.ggml.pre");
  file.Remove("tokenizer.chat_template");
  file.Remove("tokenizer.ggml.bos_token_id");
  Load(file);
  EXPECT_EQ(tokenizer_->bos_id(), -1);
  EXPECT_EQ(tokenizer_->chat_template(), "");
  EXPECT_TRUE(tokenizer_->IsSpecial(kImEnd));  // by its spelling
}

TEST_F(TokenizerTest, LongTextsOfAllKindsAreTokenized) {
  constexpr size_t kLong = 1 << 18;
  for (std::string_view unit : {"a", " ", "\n", "=", "7", "hello", " \n", "<|im_", "\u4E2D"}) {
    std::string text;
    while (text.size() < kLong) text += unit;
    std::string bytes;
    for (int32_t id : Encode(text, true)) bytes += tokenizer_->TokenBytes(id);
    EXPECT_TRUE(bytes == text) << unit;
  }
}

struct BadFile {
  const char* name;
  std::function<void(GgufWriter&)> spoil;
  absl::StatusCode code;
  const char* message;  // a part of it
};

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsRefusedWithAReason) {
  GgufWriter file = TinyFile();
  GetParam().spoil(file);
  const absl::Status status = Create(file).status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

void AppendMerge(GgufWriter& file, const std::string& merge) {
  auto merges = GetArray<std::string>(file, "tokenizer.ggml.merges");
  merges.push_back(merge);
  file.Set("tokenizer.ggml.merges", GgufWriter::Array(merges));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    , BadFileTest,
    testing::Values(
        BadFile{"NoModel", [](GgufWriter& f) { f.Remove("tokenizer.ggml.model"); }, kInvalid,
                "tokenizer.ggml.model is missing"},
        BadFile{"OtherModel",
                [](GgufWriter& f) {
                  f.Set("tokenizer.ggml.model", std::string("llama"));
                  f.Remove("tokenizer.ggml.merges");
                },
                kUnimplemented, "'llama'"},
        BadFile{"OtherPreTokenizer",
                [](GgufWriter& f) { f.Set("tokenizer.ggml.pre", std::string("tekken")); },
                kUnimplemented, "'tekken'"},
        BadFile{"NoTokens", [](GgufWriter& f) { f.Remove("tokenizer.ggml.tokens"); }, kInvalid,
                "tokenizer.ggml.tokens is missing"},
        BadFile{"EmptyVocabulary",
                [](GgufWriter& f) {
                  f.Set("tokenizer.ggml.tokens", GgufWriter::Array(std::vector<std::string>()));
                },
                kInvalid, "has 0 elements"},
        BadFile{"TokensOfAnotherType",
                [](GgufWriter& f) {
                  f.Set("tokenizer.ggml.tokens", GgufWriter::Array(std::vector<int32_t>{1, 2}));
                },
                kInvalid, "tokenizer.ggml.tokens"},
        BadFile{"DuplicateToken", [](GgufWriter& f) { AddToken(f, "<|im_end|>", 1); }, kInvalid,
                "tokens 2 and 318 have the same spelling"},
        BadFile{"TooFewTypes",
                [](GgufWriter& f) {
                  f.Set("tokenizer.ggml.token_type", GgufWriter::Array(std::vector<int32_t>{1}));
                },
                kInvalid, "has 1 elements, but there are 318 tokens"},
        BadFile{"UnknownType", [](GgufWriter& f) { AddToken(f, "x!", 7); }, kInvalid,
                "of token 318 is 7"},
        BadFile{"NegativeType", [](GgufWriter& f) { AddToken(f, "x!", -1); }, kInvalid,
                "of token 318 is -1"},
        BadFile{"NoMerges", [](GgufWriter& f) { f.Remove("tokenizer.ggml.merges"); }, kInvalid,
                "tokenizer.ggml.merges is missing"},
        BadFile{"MergeOfOneToken", [](GgufWriter& f) { AppendMerge(f, "ab"); }, kInvalid,
                "merge 59, 'ab', is not two tokens"},
        BadFile{"MergeOfNothing", [](GgufWriter& f) { AppendMerge(f, " a"); }, kInvalid,
                "merge 59, ' a'"},
        BadFile{"MergeIntoNoToken", [](GgufWriter& f) { AppendMerge(f, "q q"); }, kInvalid,
                "merge 59, 'q q'"},
        BadFile{"MergeOfNoToken", [](GgufWriter& f) { AppendMerge(f, "hel lo"); }, kInvalid,
                "merge 59, 'hel lo'"},
        BadFile{"BosOutOfRange",
                [](GgufWriter& f) { f.Set("tokenizer.ggml.bos_token_id", uint32_t{318}); },
                kInvalid, "tokenizer.ggml.bos_token_id is 318, but there are 318 tokens"},
        BadFile{"EosOutOfRange",
                [](GgufWriter& f) { f.Set("tokenizer.ggml.eos_token_id", ~uint32_t{0}); }, kInvalid,
                "tokenizer.ggml.eos_token_id is 4294967295"},
        BadFile{"EosNegative",
                [](GgufWriter& f) { f.Set("tokenizer.ggml.eos_token_id", int32_t{-1}); }, kInvalid,
                "tokenizer.ggml.eos_token_id"},
        BadFile{"TemplateOfAnotherType",
                [](GgufWriter& f) { f.Set("tokenizer.chat_template", uint32_t{1}); }, kInvalid,
                "tokenizer.chat_template"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace whit
