#include "runtime/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/byte_pair_encoder.h"
#include "runtime/text/pre_tokenizer.h"
#include "runtime/text/quoted.h"
#include "runtime/text/special_token_matcher.h"
#include "runtime/text/utf8.h"
#include "runtime/text/vocabulary.h"

namespace whit {
namespace {

absl::StatusOr<std::string_view> GetStringOr(const GgufFile& file, std::string_view key,
                                             std::string_view otherwise) {
  if (!file.Has(key)) return otherwise;
  return file.GetString(key);
}

absl::StatusOr<BytePairEncoder> ReadMerges(const GgufFile& file, const Vocabulary::Index& index) {
  constexpr char kMergesKey[] = "tokenizer.ggml.merges";
  if (!file.Has(kMergesKey)) {
    return absl::InvalidArgumentError(absl::StrCat(kMergesKey, " is missing"));
  }
  const auto merges = file.GetStringArray(kMergesKey);
  if (!merges.ok()) return merges.status();
  BytePairEncoder encoder;
  for (int byte = 0; byte < 256; ++byte) {
    const auto token = index.find(SpellByte(static_cast<uint8_t>(byte)));
    if (token != index.end()) encoder.SetByteToken(static_cast<uint8_t>(byte), token->second);
  }
  encoder.ReserveMerges(merges->size());
  std::string merged;
  for (size_t i = 0; i < merges->size(); ++i) {
    // Two spellings and a space between; a space within one would be spelled "Ġ".
    const std::string_view merge = (*merges)[i];
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", i, ", ", Quoted(merge), ", is not two tokens"));
    }
    merged.assign(merge, 0, space);
    merged.append(merge, space + 1);
    const auto find = [&](std::string_view spelling) {
      const auto token = index.find(spelling);
      return token == index.end() ? -1 : token->second;
    };
    const int32_t left = find(merge.substr(0, space));
    const int32_t right = find(merge.substr(space + 1));
    const int32_t result = find(merged);
    if (left < 0 || right < 0 || result < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", i, ", ", Quoted(merge),
                       ": one of its parts or what they make is not in the vocabulary"));
    }
    encoder.AddMerge(left, right, result);
  }
  return encoder;
}

SpecialTokenMatcher MakeSpecialTokenMatcher(const Vocabulary& vocabulary) {
  std::vector<SpecialTokenMatcher::Token> tokens;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const bool user_defined = vocabulary.kind(id) == TokenKind::kUserDefined;
    if (vocabulary.bytes(id).empty() || !(user_defined || vocabulary.IsSpecial(id))) continue;
    tokens.push_back({std::string(vocabulary.bytes(id)), id, user_defined});
  }
  return SpecialTokenMatcher(std::move(tokens));
}

}  // namespace

struct Tokenizer::Impl {
  Vocabulary vocabulary;
  BytePairEncoder encoder;
  SpecialTokenMatcher special_tokens;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  // Tokens by their bytes, if words that are tokens are not to be merged.
  absl::flat_hash_map<std::string_view, int32_t> whole_words;
  bool add_bos = false;
  std::string chat_template;

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, absl::Span<const SpecialTokenMatcher::Range> special_ranges) const;
  void EncodeWord(std::string_view word, BytePairEncoder::Scratch& scratch,
                  std::vector<int32_t>& ids) const;
};

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const GgufFile& file) {
  constexpr char kModelKey[] = "tokenizer.ggml.model";
  if (!file.Has(kModelKey)) {
    return absl::InvalidArgumentError(absl::StrCat(kModelKey, " is missing"));
  }
  const auto model = file.GetString(kModelKey);
  if (!model.ok()) return model.status();
  if (*model != "gpt2") {
    return absl::UnimplementedError(absl::StrCat("tokenizer model ", Quoted(*model),
                                                 " is not supported (", kModelKey,
                                                 "; supported is gpt2)"));
  }
  const auto pre = GetStringOr(file, "tokenizer.ggml.pre", "");
  if (!pre.ok()) return pre.status();
  auto pre_tokenizer = PreTokenizer::Create(*pre);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();

  Vocabulary::Index index;
  auto vocabulary = Vocabulary::Read(file, index);
  if (!vocabulary.ok()) return vocabulary.status();
  auto encoder = ReadMerges(file, index);
  if (!encoder.ok()) return encoder.status();

  absl::StatusOr<bool> add_bos = (*pre_tokenizer)->add_bos_by_default();
  if (file.Has("tokenizer.ggml.add_bos_token")) {
    add_bos = file.GetBool("tokenizer.ggml.add_bos_token");
    if (!add_bos.ok()) return add_bos.status();
  }
  if (*add_bos && vocabulary->bos_id() < 0) {
    return absl::InvalidArgumentError(
        "the model wants a begin-of-text token, but tokenizer.ggml.bos_token_id is missing");
  }
  const auto chat_template = GetStringOr(file, "tokenizer.chat_template", "");
  if (!chat_template.ok()) return chat_template.status();

  SpecialTokenMatcher special_tokens = MakeSpecialTokenMatcher(*vocabulary);
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->impl_.reset(new Impl{
      .vocabulary = *std::move(vocabulary),
      .encoder = *std::move(encoder),
      .special_tokens = std::move(special_tokens),
      .pre_tokenizer = *std::move(pre_tokenizer),
      .whole_words = {},
      .add_bos = *add_bos,
      .chat_template = std::string(*chat_template),
  });
  Impl& impl = *tokenizer->impl_;
  if (impl.pre_tokenizer->whole_words_first()) {
    impl.whole_words.reserve(impl.vocabulary.size());
    for (int32_t id = 0; id < impl.vocabulary.size(); ++id) {
      if (!impl.vocabulary.IsSpecial(id)) impl.whole_words.emplace(impl.vocabulary.bytes(id), id);
    }
  }
  return tokenizer;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       bool parse_special) const {
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid != std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", invalid));
  }
  const SpecialTokenMatcher::Range whole{0, parse_special ? text.size() : 0};
  return impl_->Encode(text, {&whole, 1});
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeSegments(
    absl::Span<const TextSegment> segments) const {
  std::string text;
  std::vector<SpecialTokenMatcher::Range> special_ranges;
  for (size_t i = 0; i < segments.size(); ++i) {
    const TextSegment& segment = segments[i];
    const size_t invalid = FindInvalidUtf8(segment.text);
    if (invalid != std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("text segment ", i, " is not valid UTF-8 at byte ", invalid));
    }
    const size_t begin = text.size();
    text += segment.text;
    if (!segment.parse_special) continue;
    if (!special_ranges.empty() && special_ranges.back().end == begin) {
      special_ranges.back().end = text.size();
    } else {
      special_ranges.push_back({begin, text.size()});
    }
  }
  return impl_->Encode(text, special_ranges);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Impl::Encode(
    std::string_view text, absl::Span<const SpecialTokenMatcher::Range> special_ranges) const {
  if (text.size() >= UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes, more than ", UINT32_MAX - 1));
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  BytePairEncoder::Scratch scratch;
  absl::Status status;
  special_tokens.Split(
      text, special_ranges,
      [&](std::string_view stretch) {
        status.Update(pre_tokenizer->Split(
            stretch, [&](std::string_view word) { EncodeWord(word, scratch, ids); }));
      },
      [&](int32_t id) { ids.push_back(id); });
  if (!status.ok()) return status;
  return ids;
}

void Tokenizer::Impl::EncodeWord(std::string_view word, BytePairEncoder::Scratch& scratch,
                                 std::vector<int32_t>& ids) const {
  if (const auto token = whole_words.find(word); token != whole_words.end()) {
    ids.push_back(token->second);
  } else {
    encoder.Encode(word, scratch, ids);
  }
}

std::string_view Tokenizer::TokenBytes(int32_t id) const { return impl_->vocabulary.bytes(id); }
bool Tokenizer::IsSpecial(int32_t id) const { return impl_->vocabulary.IsSpecial(id); }
int Tokenizer::vocab_size() const { return impl_->vocabulary.size(); }
bool Tokenizer::add_bos() const { return impl_->add_bos; }
int32_t Tokenizer::bos_id() const { return impl_->vocabulary.bos_id(); }
int32_t Tokenizer::eos_id() const { return impl_->vocabulary.eos_id(); }
absl::Span<const int32_t> Tokenizer::end_of_generation_ids() const {
  return impl_->vocabulary.end_of_generation_ids();
}
bool Tokenizer::IsEndOfGeneration(int32_t id) const {
  const auto ids = end_of_generation_ids();
  return std::binary_search(ids.begin(), ids.end(), id);
}
std::string_view Tokenizer::chat_template() const { return impl_->chat_template; }
const Vocabulary& Tokenizer::vocabulary() const { return impl_->vocabulary; }
const BytePairEncoder& Tokenizer::encoder() const { return impl_->encoder; }
const PreTokenizer& Tokenizer::pre_tokenizer() const { return *impl_->pre_tokenizer; }

}  // namespace whit
