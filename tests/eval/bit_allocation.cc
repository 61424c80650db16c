#include "tests/eval/bit_allocation.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "controller/rung_choice.h"

namespace whit::eval {
namespace {

constexpr std::array<const char*, kNumTokenKinds> kKindNames = {
    "whitespace", "punctuation", "digits", "word_start", "word_continuation"};

bool IsWordByte(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0x80 || absl::ascii_isalnum(byte);
}

bool All(std::string_view bytes, bool (*is)(unsigned char)) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [is](char c) { return is(static_cast<unsigned char>(c)); });
}

}  // namespace

TokenKind KindOf(std::string_view bytes, std::string_view previous) {
  if (All(bytes, absl::ascii_isspace)) return TokenKind::kWhitespace;
  const bool blank_before = absl::ascii_isspace(static_cast<unsigned char>(bytes.front()));
  const std::string_view rest = blank_before ? bytes.substr(1) : bytes;
  if (All(rest, absl::ascii_isdigit)) return TokenKind::kDigits;
  if (std::none_of(rest.begin(), rest.end(), IsWordByte)) return TokenKind::kPunctuation;
  const bool continues = !blank_before && !previous.empty() && IsWordByte(previous.back());
  return continues ? TokenKind::kWordContinuation : TokenKind::kWordStart;
}

std::vector<TokenKind> KindsOf(absl::Span<const int32_t> tokens, const Tokenizer& tokenizer) {
  std::vector<TokenKind> kinds;
  std::string_view previous;
  for (const int32_t token : tokens) {
    const std::string_view bytes = tokenizer.TokenBytes(token);
    kinds.push_back(KindOf(bytes, previous));
    previous = bytes;
  }
  return kinds;
}

BitAllocation::BitAllocation(const ModelConfig& config)
    : num_layers_(config.num_layers),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      pairs_(size_t{1} * num_layers_ * num_kv_heads_) {}

void BitAllocation::Add(const EndedSequence& ended, absl::Span<const TokenKind> kinds) {
  if (NumDecisions(ended.decisions.counts()) == 0) return;
  const PageTable& table = ended.table;
  const int settled = SettledTokens(table.ring(), table.num_tokens());
  for (int layer = 0; layer < num_layers_; ++layer) {
    for (int head = 0; head < num_kv_heads_; ++head) {
      const absl::Span<const PageEntry> pages = table.pages(layer, head);
      sink_.Add(PackedBits(pages.front().rung, head_dim_), pages.front().tokens);
      Sum& pair = pairs_[size_t{1} * layer * num_kv_heads_ + head];
      int seen = pages.front().tokens;
      for (size_t page = 1; seen < settled; seen += pages[page++].tokens) {  // settled ones first
        pair.Add(PackedBits(pages[page].rung, head_dim_), pages[page].tokens);
      }
    }
  }
  for (int position = kTileTokens; position < settled; ++position) {
    const double bits = ended.decisions.MeanBits(position, head_dim_);
    kinds_[static_cast<size_t>(kinds[position])].Add(bits, 1);
    decided_.Add(bits, 1);
  }
}

double BitAllocation::MeanBits(int layer, int kv_head) const {
  return pairs_[size_t{1} * layer * num_kv_heads_ + kv_head].mean();
}

ResultObject BitAllocation::ToJson() const {
  ResultObject pairs = ResultObject::array(), kinds = ResultObject::object();
  for (int layer = 0; layer < num_layers_; ++layer) {
    ResultObject heads = ResultObject::array();
    for (int head = 0; head < num_kv_heads_; ++head) heads.push_back(MeanBits(layer, head));
    pairs.push_back(heads);
  }
  const auto describe = [](const Sum& sum, int64_t tokens) {
    return ResultObject{{"tokens", tokens}, {"packed_bits", sum.mean()}};
  };
  kinds["sink"] = describe(sink_, sink_.count / static_cast<int64_t>(pairs_.size()));
  for (int kind = 0; kind < kNumTokenKinds; ++kind) {
    if (kinds_[kind].count > 0)
      kinds[kKindNames[kind]] = describe(kinds_[kind], kinds_[kind].count);
  }
  return {{"by_layer_and_kv_head", pairs}, {"by_token_kind", kinds}};
}

}  // namespace whit::eval
