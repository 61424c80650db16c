// The tokenizer for others: as a tokenizer.json of Hugging Face's library `tokenizers`.
#ifndef WHIT_RUNTIME_TEXT_TOKENIZER_JSON_H_
#define WHIT_RUNTIME_TEXT_TOKENIZER_JSON_H_

#include <string>

#include "runtime/text/tokenizer.h"

namespace whit {

// What reads it makes of a text the token ids that Encode makes with special tokens parsed, and of
// token ids the text that TokenBytes make. Where special tokens are to be added, it adds the
// begin-of-text token if the model wants one. The same tokenizer gives the same bytes.
std::string ToTokenizerJson(const Tokenizer& tokenizer);

}  // namespace whit

#endif  // WHIT_RUNTIME_TEXT_TOKENIZER_JSON_H_
