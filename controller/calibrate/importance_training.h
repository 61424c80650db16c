// Fits the importance model (controller/importance.h) to samples.
#ifndef WHIT_CONTROLLER_CALIBRATE_IMPORTANCE_TRAINING_H_
#define WHIT_CONTROLLER_CALIBRATE_IMPORTANCE_TRAINING_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "controller/calibrate/importance_samples.h"
#include "controller/importance.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// Mean of w e^-y + y over the samples held out of one context, for keys and values together: w is
// the importance in means of its pair, y what a model says of ln w. It is least where e^y is the
// mean of w that the features leave open, however few tokens hold most of it.
struct ImportanceLoss {
  int context = 0;
  size_t samples = 0;
  double network = 0;
  double linear = 0;    // of the features, for each pair
  double constant = 0;  // for each pair
};

struct ImportanceFit {
  ImportanceModel model;  // without query means and errors of rungs
  std::vector<ImportanceLoss> held_out;
  // By context and sample held out: what the model says of its importance.
  std::vector<std::vector<std::array<float, 2>>> predicted;
};

struct ImportanceFitOptions {
  int steps = 1500;
  int batch_of_context = 4096;
  uint64_t seed = 0;
};

// Each context has the same weight. The result does not depend on the number of threads. At least
// one context has samples to learn from. `progress` is told the steps done, twice `steps` in all.
ImportanceFit FitImportance(absl::Span<const SamplesOfContext> contexts, int num_pairs,
                            const ImportanceFitOptions& options, ThreadPool& pool,
                            absl::FunctionRef<void(size_t steps)> progress);

// [pair][2]: mean over the tokens learned from of importance * energy, each context with the same
// weight.
std::vector<float> MeanSensitivities(absl::Span<const SamplesOfContext> contexts, int num_pairs);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_IMPORTANCE_TRAINING_H_
