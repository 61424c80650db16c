#include "runtime/text/tokenizer_json.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "runtime/text/byte_alphabet.h"
#include "runtime/text/byte_pair_encoder.h"
#include "runtime/text/pre_tokenizer.h"
#include "runtime/text/vocabulary.h"

namespace whit {
namespace {

using nlohmann::json;

// It stands in texts under its own spelling.
bool IsAdded(const Vocabulary& vocabulary, int32_t id) {
  return vocabulary.IsSpecial(id) || vocabulary.kind(id) == TokenKind::kUserDefined;
}

std::string Spelling(const Vocabulary& vocabulary, int32_t id) {
  const std::string_view bytes = vocabulary.bytes(id);
  if (IsAdded(vocabulary, id)) return std::string(bytes);
  std::string spelling;
  for (const char byte : bytes) spelling += SpellByte(static_cast<uint8_t>(byte));
  return spelling;
}

json BpeModel(const Tokenizer& tokenizer) {
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  json ids = json::object(), merges = json::array();
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (!vocabulary.bytes(id).empty()) ids.emplace(Spelling(vocabulary, id), id);
  }
  for (const BytePairEncoder::Merge& merge : tokenizer.encoder().merges()) {
    merges.push_back(
        json::array({Spelling(vocabulary, merge.left), Spelling(vocabulary, merge.right)}));
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", tokenizer.pre_tokenizer().whole_words_first()},
          {"vocab", std::move(ids)},
          {"merges", std::move(merges)}};
}

json AddedTokens(const Vocabulary& vocabulary) {
  json tokens = json::array();
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (!IsAdded(vocabulary, id) || vocabulary.bytes(id).empty()) continue;
    tokens.push_back({{"id", id},
                      {"content", Spelling(vocabulary, id)},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", vocabulary.IsSpecial(id)}});
  }
  return tokens;
}

json ByteLevel() {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", false}};
}

json PreTokenizers(const PreTokenizer& pre_tokenizer) {
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", pre_tokenizer.expression()}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", json::array({split, ByteLevel()})}};
}

// Begin-of-text goes before each sequence.
json PostProcessor(const Tokenizer& tokenizer) {
  if (!tokenizer.add_bos()) return nullptr;
  const std::string bos = Spelling(tokenizer.vocabulary(), tokenizer.bos_id());
  const auto begin = [&](int type) -> json {
    return {{"SpecialToken", {{"id", bos}, {"type_id", type}}}};
  };
  const auto sequence = [](const char* name, int type) -> json {
    return {{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  json special = json::object();
  special[bos] = {
      {"id", bos}, {"ids", json::array({tokenizer.bos_id()})}, {"tokens", json::array({bos})}};
  return {{"type", "TemplateProcessing"},
          {"single", json::array({begin(0), sequence("A", 0)})},
          {"pair", json::array({begin(0), sequence("A", 0), begin(1), sequence("B", 1)})},
          {"special_tokens", std::move(special)}};
}

}  // namespace

std::string ToTokenizerJson(const Tokenizer& tokenizer) {
  const json whole = {{"version", "1.0"},
                      {"truncation", nullptr},
                      {"padding", nullptr},
                      {"added_tokens", AddedTokens(tokenizer.vocabulary())},
                      {"normalizer", nullptr},
                      {"pre_tokenizer", PreTokenizers(tokenizer.pre_tokenizer())},
                      {"post_processor", PostProcessor(tokenizer)},
                      {"decoder", ByteLevel()},
                      {"model", BpeModel(tokenizer)}};
  // The spelling of a special token might not be UTF-8.
  return whole.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace whit
