#include "runtime/text/vocabulary.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/text/byte_alphabet.h"
#include "runtime/text/quoted.h"

namespace whit {
namespace {

// Files rarely name all tokens that end a generation, so spelling decides too. The lists and their
// use are llama.cpp's. A token with such a spelling is a control token whatever the file says of
// it.
constexpr std::string_view kEndOfGeneration[] = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
};

// Fill-in-the-middle tokens: a model that pads, or begins another file or repository, is done.
struct FillInTheMiddleToken {
  const char* key;
  std::array<std::string_view, 5> spellings;
  bool ends_generation;
};
constexpr FillInTheMiddleToken kFillInTheMiddle[] = {
    {"tokenizer.ggml.fim_pre_token_id",
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>"},
     false},
    {"tokenizer.ggml.fim_suf_token_id",
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>"},
     false},
    {"tokenizer.ggml.fim_mid_token_id",
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>"},
     false},
    {"tokenizer.ggml.fim_pad_token_id",
     {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"},
     true},
    {"tokenizer.ggml.fim_rep_token_id",
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
     true},
    {"tokenizer.ggml.fim_sep_token_id", {"<|file_sep|>"}, true},
};

constexpr int32_t kNoToken = -1;

// The token id that the file gives under `key`; kNoToken if it does not.
absl::StatusOr<int32_t> ReadTokenId(const GgufFile& file, const char* key, size_t num_tokens) {
  if (!file.Has(key)) return kNoToken;
  const absl::StatusOr<uint64_t> id = file.GetUint(key);
  if (!id.ok()) return id.status();
  if (*id >= num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is ", *id, ", but there are ", num_tokens, " tokens"));
  }
  return static_cast<int32_t>(*id);
}

int32_t FindToken(const Vocabulary::Index& index, std::string_view spelling) {
  const auto found = index.find(spelling);
  return found == index.end() ? kNoToken : found->second;
}

}  // namespace

absl::StatusOr<Vocabulary> Vocabulary::Read(const GgufFile& file, Index& index) {
  constexpr char kTokensKey[] = "tokenizer.ggml.tokens";
  if (!file.Has(kTokensKey)) {
    return absl::InvalidArgumentError(absl::StrCat(kTokensKey, " is missing"));
  }
  const auto spellings = file.GetStringArray(kTokensKey);
  if (!spellings.ok()) return spellings.status();
  if (spellings->empty() || spellings->size() > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat(kTokensKey, " has ", spellings->size(), " elements, not 1 to 2^31 - 1"));
  }

  index.reserve(spellings->size());
  for (size_t id = 0; id < spellings->size(); ++id) {
    const std::string_view spelling = (*spellings)[id];
    if (spelling.empty()) continue;  // a gap in the numbers; no text gives it
    const auto [first, is_new] = index.emplace(spelling, static_cast<int32_t>(id));
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokens ", first->second, " and ", id, " have the same spelling, ", Quoted(spelling)));
    }
  }

  Vocabulary vocabulary;
  if (absl::Status status = vocabulary.ReadKinds(file, spellings->size()); !status.ok()) {
    return status;
  }
  if (absl::Status status = vocabulary.FindSpecialTokens(file, index); !status.ok()) return status;
  vocabulary.DecodeBytes(*spellings);
  return vocabulary;
}

absl::Status Vocabulary::ReadKinds(const GgufFile& file, size_t num_tokens) {
  constexpr char kKey[] = "tokenizer.ggml.token_type";
  kinds_.assign(num_tokens, TokenKind::kNormal);
  if (!file.Has(kKey)) return absl::OkStatus();
  const auto kinds = file.GetIntArray(kKey);
  if (!kinds.ok()) return kinds.status();
  if (kinds->size() != num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        kKey, " has ", kinds->size(), " elements, but there are ", num_tokens, " tokens"));
  }
  constexpr auto kMax = static_cast<int64_t>(TokenKind::kByte);
  for (size_t id = 0; id < num_tokens; ++id) {
    const int64_t kind = (*kinds)[id];
    if (kind < 0 || kind > kMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(kKey, " of token ", id, " is ", kind, ", not 0 to ", kMax));
    }
    kinds_[id] = static_cast<TokenKind>(kind);
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::FindSpecialTokens(const GgufFile& file, const Index& index) {
  absl::Status status;
  const auto read = [&](const char* key) {
    const absl::StatusOr<int32_t> id = ReadTokenId(file, key, kinds_.size());
    if (!id.ok()) status.Update(id.status());
    return id.value_or(kNoToken);
  };
  bos_id_ = read("tokenizer.ggml.bos_token_id");
  eos_id_ = read("tokenizer.ggml.eos_token_id");
  std::vector<int32_t> ends = {eos_id_, read("tokenizer.ggml.eot_token_id"),
                               read("tokenizer.ggml.eom_token_id")};

  for (std::string_view spelling : kEndOfGeneration) {
    const int32_t id = FindToken(index, spelling);
    if (id == kNoToken) continue;
    kinds_[id] = TokenKind::kControl;
    ends.push_back(id);
  }
  for (const FillInTheMiddleToken& token : kFillInTheMiddle) {
    int32_t id = read(token.key);
    for (size_t i = 0; id == kNoToken && i < token.spellings.size(); ++i) {
      id = FindToken(index, token.spellings[i]);
      if (id != kNoToken) kinds_[id] = TokenKind::kControl;
    }
    if (token.ends_generation) ends.push_back(id);
  }

  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  if (ends.front() == kNoToken) ends.erase(ends.begin());
  end_of_generation_ids_ = std::move(ends);
  return status;
}

void Vocabulary::DecodeBytes(absl::Span<const std::string_view> spellings) {
  offsets_.reserve(spellings.size() + 1);
  offsets_.push_back(0);
  for (size_t id = 0; id < spellings.size(); ++id) {
    const bool is_text = kinds_[id] != TokenKind::kUserDefined && !IsSpecial(static_cast<int>(id));
    if (!is_text || !AppendSpelledBytes(spellings[id], bytes_)) bytes_ += spellings[id];
    offsets_.push_back(bytes_.size());
  }
}

}  // namespace whit
