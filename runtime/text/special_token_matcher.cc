#include "runtime/text/special_token_matcher.h"

#include <algorithm>
#include <utility>

namespace whit {

SpecialTokenMatcher::SpecialTokenMatcher(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const Token& a, const Token& b) { return a.spelling < b.spelling; });
  for (const Token& token : tokens_) {
    is_first_byte_[static_cast<uint8_t>(token.spelling.front())] = true;
  }
}

void SpecialTokenMatcher::Split(std::string_view text, absl::Span<const Range> special_ranges,
                                absl::FunctionRef<void(std::string_view)> use_text,
                                absl::FunctionRef<void(int32_t)> use_token) const {
  const Range* range = special_ranges.begin();
  size_t text_begin = 0;
  for (size_t offset = 0; offset < text.size();) {
    if (!is_first_byte_[static_cast<uint8_t>(text[offset])]) {
      ++offset;
      continue;
    }
    while (range != special_ranges.end() && range->end <= offset) ++range;
    const bool in_range = range != special_ranges.end() && range->begin <= offset;
    const Token* token = MatchPrefix(text.substr(offset), in_range ? range->end - offset : 0);
    if (token == nullptr) {
      ++offset;
      continue;
    }
    if (offset > text_begin) use_text(text.substr(text_begin, offset - text_begin));
    use_token(token->id);
    offset += token->spelling.size();
    text_begin = offset;
  }
  if (text_begin < text.size()) use_text(text.substr(text_begin));
}

const SpecialTokenMatcher::Token* SpecialTokenMatcher::MatchPrefix(std::string_view text,
                                                                   size_t special_size) const {
  // Tokens with a common prefix are neighbours, the shortest first. So walk down the text and keep
  // the tokens that agree with it so far.
  auto first = tokens_.begin(), last = tokens_.end();
  const Token* longest = nullptr;
  for (size_t length = 0; length < text.size();) {
    const auto byte = static_cast<uint8_t>(text[length]);
    const auto byte_of = [length](const Token& token) {
      return length < token.spelling.size() ? int{static_cast<uint8_t>(token.spelling[length])}
                                            : -1;
    };
    first = std::partition_point(first, last, [&](const Token& t) { return byte_of(t) < byte; });
    last = std::partition_point(first, last, [&](const Token& t) { return byte_of(t) == byte; });
    if (first == last) break;
    ++length;
    if (first->spelling.size() == length && (first->always || length <= special_size)) {
      longest = &*first;
    }
  }
  return longest;
}

}  // namespace whit
