// The statistics of whit-eval's tables.
#ifndef WHIT_TESTS_EVAL_STATISTICS_H_
#define WHIT_TESTS_EVAL_STATISTICS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace whit::eval {

// The q-quantile, 0 <= q <= 1, between the two nearest values where it falls between them; NaN of
// nothing.
double Quantile(std::vector<float> values, double q);

struct Interval {
  double low = 0;
  double high = 0;
};

// A block's sum over `count` tokens. Tokens of a text depend on each other; blocks (documents) are
// taken to be independent.
struct Block {
  double sum = 0;
  int64_t count = 0;
};

// Sum over count of all blocks; NaN of nothing.
double Mean(absl::Span<const Block> blocks);

// The 95 % percentile interval of the mean, by drawing whole blocks with replacement. The draws
// depend on the number of blocks alone, so arms measured on the same blocks are compared on the
// same draws. NaN with fewer than two blocks, from which no spread can be seen.
Interval BootstrapMean(absl::Span<const Block> blocks);

// Two-sided p-value of McNemar's exact test: of the items that exactly one of two arms gets right,
// `only_first` and `only_second`, as many as these fall to one side by chance. 1 if there are none.
double McNemarP(int64_t only_first, int64_t only_second);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_STATISTICS_H_
