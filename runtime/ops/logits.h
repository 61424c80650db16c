// What sampling needs of a row of logits, vectorised. A NaN or an infinity is read as the nearest
// thing that computes: NaN and -inf as the lowest float, +inf as the largest.
#ifndef WHIT_RUNTIME_OPS_LOGITS_H_
#define WHIT_RUNTIME_OPS_LOGITS_H_

#include <cstddef>

namespace whit {

// Index of the first largest; n > 0.
size_t ArgMax(const float* x, size_t n);

// out[i] = exp((x[i] - x[max]) * scale), so that the largest is exactly 1; returns their sum.
// `max` is ArgMax(x, n), `scale` > 0. out may be x.
double ExpWeights(const float* x, size_t n, size_t max, float scale, float* out);

// log(sum exp(x)); `max` is ArgMax(x, n).
double LogSumExp(const float* x, size_t n, size_t max);

// Of the distribution that softmax makes of x.
struct SoftmaxSummary {
  double entropy;  // in nats
  double largest;  // probability
};
SoftmaxSummary SummarizeSoftmax(const float* x, size_t n);

// A logit as the functions above read it.
float FiniteLogit(float x);

}  // namespace whit

#endif  // WHIT_RUNTIME_OPS_LOGITS_H_
