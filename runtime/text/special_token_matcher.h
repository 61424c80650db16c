// SpecialTokenMatcher: finds the tokens that stand in a text under their own spelling.
#ifndef WHIT_RUNTIME_TEXT_SPECIAL_TOKEN_MATCHER_H_
#define WHIT_RUNTIME_TEXT_SPECIAL_TOKEN_MATCHER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"

namespace whit {

// Threads: immutable after construction; any thread may call.
class SpecialTokenMatcher {
 public:
  struct Token {
    std::string spelling;  // not empty
    int32_t id = 0;
    bool always = false;  // counts everywhere; other tokens only where special tokens are asked for
  };
  explicit SpecialTokenMatcher(std::vector<Token> tokens);

  struct Range {
    size_t begin, end;
  };
  // Cuts `text` into tokens and what lies between them, and hands both over in their order. Of the
  // tokens that begin earliest, the longest is taken. `special_ranges`, in order and not touching
  // each other, are where special tokens are asked for; such a token lies within one of them.
  void Split(std::string_view text, absl::Span<const Range> special_ranges,
             absl::FunctionRef<void(std::string_view)> use_text,
             absl::FunctionRef<void(int32_t)> use_token) const;

 private:
  // The longest token at the beginning of `text`, and within its first `special_size` bytes unless
  // it counts always. nullptr if there is none.
  const Token* MatchPrefix(std::string_view text, size_t special_size) const;

  std::vector<Token> tokens_;  // sorted by spelling
  std::array<bool, 256> is_first_byte_{};
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_SPECIAL_TOKEN_MATCHER_H_
