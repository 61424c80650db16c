// Cuts texts into the sequences that perplexity and KLD are measured on.
#ifndef WHIT_TESTS_EVAL_TEXT_CHUNKS_H_
#define WHIT_TESTS_EVAL_TEXT_CHUNKS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/text/tokenizer.h"
#include "tests/eval/arm_runner.h"

namespace whit::eval {

// The ids of each file's text, tokenized as a whole. Errors name the file.
absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeFiles(absl::Span<const std::string> paths,
                                                                const Tokenizer& tokenizer);

// Chunks of `context` tokens, `tokens` in all (rounded up to whole chunks, or all there are): as
// many of each text as it has and its share allows, spread evenly over it, the texts taking turns.
// Every position but a chunk's last is scored. A model that asks for a begin-of-text token gets it
// as each chunk's first. INVALID_ARGUMENT if no text is as long as a chunk.
absl::StatusOr<std::vector<Sequence>> CutChunks(absl::Span<const std::vector<int32_t>> texts,
                                                int context, int64_t tokens,
                                                const Tokenizer& tokenizer);

// The first `count` code points of UTF-8 text.
std::string_view FirstCharacters(std::string_view text, int64_t count);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_TEXT_CHUNKS_H_
