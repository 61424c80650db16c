// Tokenizer: byte-level BPE (GPT-2's) with the model file's vocabulary, merges and pre-tokenizer.
#ifndef WHIT_RUNTIME_TEXT_TOKENIZER_H_
#define WHIT_RUNTIME_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/model/gguf.h"

namespace whit {

class BytePairEncoder;
class PreTokenizer;
class Vocabulary;

// A stretch of text, and whether special tokens written in it count as such. Consecutive segments
// are tokenized as one text: where they meet is no token boundary unless a special token makes it
// one.
struct TextSegment {
  std::string text;
  bool parse_special = false;
};

// Threads: immutable after Create; any thread may call.
class Tokenizer {
 public:
  // UNIMPLEMENTED names a tokenizer model or pre-tokenizer that is not supported, INVALID_ARGUMENT
  // what is missing, inconsistent or out of range in the file.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufFile& file);
  ~Tokenizer();

  // INVALID_ARGUMENT gives the offset of the first byte that is not UTF-8. No begin-of-text token
  // is added here.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const;
  absl::StatusOr<std::vector<int32_t>> EncodeSegments(absl::Span<const TextSegment> segments) const;

  // The bytes a token stands for; for a special token its own spelling. `id` is in range.
  std::string_view TokenBytes(int32_t id) const;
  // A special (control) token is not shown in generated text.
  bool IsSpecial(int32_t id) const;

  int vocab_size() const;
  // Prepended to every prompt if the model asks for it; otherwise nothing is.
  bool add_bos() const;
  int32_t bos_id() const;  // -1 if none
  int32_t eos_id() const;  // -1 if none
  // Tokens that end a generation: eos, eot, eom and the like. Sorted.
  absl::Span<const int32_t> end_of_generation_ids() const;
  bool IsEndOfGeneration(int32_t id) const;
  // The file's chat template; empty if it has none.
  std::string_view chat_template() const;

  // What it is made of.
  const Vocabulary& vocabulary() const;
  const BytePairEncoder& encoder() const;
  const PreTokenizer& pre_tokenizer() const;

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_TOKENIZER_H_
