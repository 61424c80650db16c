// The first step of calibration: the means of keys and of queries.
#ifndef WHIT_CONTROLLER_CALIBRATE_KEY_CALIBRATION_H_
#define WHIT_CONTROLLER_CALIBRATE_KEY_CALIBRATION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/calibrate/calibration_text.h"
#include "controller/policy_file.h"
#include "runtime/model/model.h"

namespace whit {

struct KeyCalibration {
  std::vector<float> key_means;    // as in PolicyFile
  std::vector<float> query_means;  // as in ImportanceModel
  int64_t learned_tokens = 0;      // that were counted
  // Share of the keys' energy that the means explain in the windows held out, of each layer and in
  // all (KeyEnergy).
  std::vector<double> layer_key_energy_explained = {};
  double key_energy_explained = 0;
};

// Runs the windows through the model. Queries are averaged over contexts of these lengths. The
// result does not depend on the number of threads. `progress` is told how many tokens have been
// run. RESOURCE_EXHAUSTED if the memory for a window's keys and values cannot be had.
absl::StatusOr<KeyCalibration> CalibrateKeys(Model& model, absl::Span<const TextWindow> windows,
                                             absl::Span<const int> contexts,
                                             absl::FunctionRef<void(size_t tokens)> progress);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_KEY_CALIBRATION_H_
