// The mode `perplexity`: FP16 keys and values with activations of 16 and of 8 bits, for comparison
// with other implementations.
#ifndef WHIT_TESTS_EVAL_PERPLEXITY_H_
#define WHIT_TESTS_EVAL_PERPLEXITY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tests/eval/loaded_model.h"
#include "tests/eval/report.h"

namespace whit::eval {

struct PerplexityResult {
  std::string name;
  int64_t tokens = 0;
  int chunks = 0;
  double all_positions = 0;
  double second_half = 0;  // of each chunk alone, as llama-perplexity counts

  ResultObject ToJson() const;
};

// Cuts the text into chunks of `context` tokens, drops the rest, and runs each from an empty cache.
// Prints a table.
absl::StatusOr<std::vector<PerplexityResult>> MeasurePerplexity(const LoadedModel& loaded,
                                                                const std::vector<int32_t>& text,
                                                                int context, int batch);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_PERPLEXITY_H_
