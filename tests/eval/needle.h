// The mode `needle`: does a number said once in a long text come back when asked for at its end?
#ifndef WHIT_TESTS_EVAL_NEEDLE_H_
#define WHIT_TESTS_EVAL_NEEDLE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/text/tokenizer.h"
#include "tests/eval/accuracy.h"

namespace whit::eval {

// `trials` sequences of `context` tokens: a stretch of `text`, into which a six-digit pass key is
// put at a depth from 2 to 95 %, then the question, then the key but for its last token; its tokens
// are the targets. The same for every run. INVALID_ARGUMENT if `text` is too short.
absl::StatusOr<std::vector<ScoredItem>> MakeNeedles(absl::Span<const int32_t> text, int context,
                                                    int trials, const Tokenizer& tokenizer);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_NEEDLE_H_
