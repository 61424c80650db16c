// Where an arm's bits go: by layer and KV head, and by what kind of text a token is.
#ifndef WHIT_TESTS_EVAL_BIT_ALLOCATION_H_
#define WHIT_TESTS_EVAL_BIT_ALLOCATION_H_

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "runtime/text/tokenizer.h"
#include "tests/eval/arm_runner.h"
#include "tests/eval/report.h"

namespace whit::eval {

enum class TokenKind {
  kWhitespace,  // blanks and line ends alone
  kPunctuation,
  kDigits,
  kWordStart,
  kWordContinuation,
};
inline constexpr int kNumTokenKinds = 5;

// Of a token's bytes after those of the token before it. A blank before something does not count,
// but begins a word; so does what follows anything but a letter or a digit. Letters of other
// scripts than ASCII's make words, their punctuation too.
TokenKind KindOf(std::string_view bytes, std::string_view previous);
std::vector<TokenKind> KindsOf(absl::Span<const int32_t> tokens, const Tokenizer& tokenizer);

// Sums over the sequences of one arm.
class BitAllocation {
 public:
  explicit BitAllocation(const ModelConfig& config);

  // `kinds` has one for each of the sequence's tokens.
  void Add(const EndedSequence& ended, absl::Span<const TokenKind> kinds);

  // Nothing was decided: the arm has no policy that decides.
  bool empty() const { return decided_.count == 0; }
  // Packed bits of decided tokens.
  double MeanBits(int layer, int kv_head) const;

  // {"by_layer_and_kv_head": [[bits]], "by_token_kind": {kind: {"tokens": n, "packed_bits":
  // bits}}}. Tokens of the first page, "sink", are not decided but kept at the ring's rung for
  // them; those still in the ring at the end count nowhere.
  ResultObject ToJson() const;

 private:
  struct Sum {
    double bits = 0;
    int64_t count = 0;
    void Add(double bits_each, int64_t times) {
      bits += bits_each * static_cast<double>(times);
      count += times;
    }
    double mean() const { return bits / static_cast<double>(count); }
  };

  int num_layers_, num_kv_heads_, head_dim_;
  std::vector<Sum> pairs_;  // [layer][KV head]
  std::array<Sum, kNumTokenKinds> kinds_;
  Sum sink_, decided_;
};

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_BIT_ALLOCATION_H_
