// PreTokenizer: cuts text into the words within which byte pairs are merged.
#ifndef WHIT_RUNTIME_TEXT_PRE_TOKENIZER_H_
#define WHIT_RUNTIME_TEXT_PRE_TOKENIZER_H_

#include <memory>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace whit {

// Threads: immutable after Create; any thread may call.
class PreTokenizer {
 public:
  // `name` is the value of a GGUF file's tokenizer.ggml.pre. UNIMPLEMENTED for one that is not
  // known.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(std::string_view name);
  ~PreTokenizer();

  // Calls `use` with each word in turn; together they are `text`, which is valid UTF-8. Takes time
  // linear in the text. INTERNAL if the regular expression engine fails, for want of memory.
  absl::Status Split(std::string_view text, absl::FunctionRef<void(std::string_view)> use) const;

  // The regular expression whose matches are the words, as the models' own tokenizer.json have it.
  std::string_view expression() const { return expression_; }
  // A word that is a token as a whole is that token, whatever the merges would make of it.
  bool whole_words_first() const { return whole_words_first_; }
  // Whether models with this pre-tokenizer want a begin-of-text token when the file does not say.
  bool add_bos_by_default() const { return add_bos_by_default_; }

 private:
  PreTokenizer();

  struct Regex;
  std::unique_ptr<Regex> regex_;
  std::string_view expression_;  // of static storage
  bool whole_words_first_ = false;
  bool add_bos_by_default_ = false;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_PRE_TOKENIZER_H_
