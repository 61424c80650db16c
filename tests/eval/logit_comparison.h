// Compares two rows of logits as distributions over the vocabulary, vectorised.
#ifndef WHIT_TESTS_EVAL_LOGIT_COMPARISON_H_
#define WHIT_TESTS_EVAL_LOGIT_COMPARISON_H_

#include <cstddef>

namespace whit::eval {

// A row with what is needed of it more than once. Does not own the logits.
struct LogitRow {
  const float* logits = nullptr;
  size_t size = 0;
  size_t arg_max = 0;
  double log_sum_exp = 0;

  double LogProbability(size_t token) const { return double{logits[token]} - log_sum_exp; }
};

LogitRow MakeLogitRow(const float* logits, size_t size);

// D(reference || other) in nats. Exactly 0 for equal rows; otherwise exact to some 1e-7, so it may
// be slightly negative.
double KlDivergence(const LogitRow& reference, const LogitRow& other);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_LOGIT_COMPARISON_H_
