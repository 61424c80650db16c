// Trains the controller of "Don't Waste Bits!" (controller/learned_model.h).
//
// The paper leaves open what the labels are. Here a token's label is the cheapest of kLearnedRungs
// whose error stays within a tolerance, the error being what errors in its keys and values are
// expected to move, relative to the residual stream, summed over all layers and heads:
//   E(rung) = sum of importance_K * key_error(rung) * |k - mean|^2, and the same for the value
// The tolerance is the one within which half of the tokens stay at 2 bits: since the paper's
// controller is faster than a static 4-bit cache, it must give many tokens less than that.
//
// Loss (the paper's): alpha * cross entropy + beta * sum p_k c_k + gamma * (1 - sum p_k q_k), where
// the cost c_k is the rung's share of 16 bits, and the quality q_k = 1 / (1 + E(k) / tolerance).
#ifndef WHIT_CONTROLLER_CALIBRATE_LEARNED_TRAINING_H_
#define WHIT_CONTROLLER_CALIBRATE_LEARNED_TRAINING_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "controller/calibrate/importance_samples.h"
#include "controller/learned_model.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

struct LearnedFit {
  LearnedModel model;
  size_t tokens = 0;
  double tolerance = 0;
  // Of kLearnedRungs: shares of the tokens held out that are labelled so, and that the network
  // gives.
  std::array<double, LearnedModel::kClasses> labelled = {}, chosen = {};
  // Shares of tokens that get their label.
  double learned_accuracy = 0, held_out_accuracy = 0;
};

struct LearnedFitOptions {
  double alpha = 1, beta = 0.1, gamma = 0.1;
  int steps = 2000;
  int batch = 1024;
  uint64_t seed = 0;
};

// A fifth of the tokens of each label is held out. The result does not depend on the number of
// threads. There is at least one token. `progress` is told the steps done.
LearnedFit FitLearned(absl::Span<const SamplesOfContext> contexts,
                      const std::array<float, 3>& key_error,
                      const std::array<float, 3>& value_error, const LearnedFitOptions& options,
                      ThreadPool& pool, absl::FunctionRef<void(size_t steps)> progress);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_LEARNED_TRAINING_H_
