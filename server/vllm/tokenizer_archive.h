// TokenizerArchive: what a gateway needs to tokenize for the model itself, as files of Hugging
// Face's format in a zip.
#ifndef WHIT_SERVER_VLLM_TOKENIZER_ARCHIVE_H_
#define WHIT_SERVER_VLLM_TOKENIZER_ARCHIVE_H_

#include <string>

#include "runtime/model/model_config.h"
#include "runtime/text/tokenizer.h"

namespace whit {

struct TokenizerArchive {
  std::string zip;
  std::string sha256;  // of the zip's bytes, in hexadecimal
};

// tokenizer.json, tokenizer_config.json (with the chat template) and config.json. The same model
// gives the same bytes. Takes a fraction of a second.
TokenizerArchive MakeTokenizerArchive(const ModelConfig& config, const Tokenizer& tokenizer);

}  // namespace whit

#endif  // WHIT_SERVER_VLLM_TOKENIZER_ARCHIVE_H_
