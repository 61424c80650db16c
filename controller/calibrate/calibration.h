// calibrate: measures a model and learns from it what the controller needs to know, for the tool
// whit-calibrate. Unlike the rest of controller/ it runs models; nothing of the server depends on
// it.
//
// This file: from a model and texts to a policy file.
#ifndef WHIT_CONTROLLER_CALIBRATE_CALIBRATION_H_
#define WHIT_CONTROLLER_CALIBRATE_CALIBRATION_H_

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

struct Calibration {
  std::vector<float> key_means;  // as in PolicyFile
  int64_t learned_tokens = 0;    // that were counted
  // Share of the keys' energy that the means explain in the windows held out, of each layer and in
  // all (KeyEnergy).
  std::vector<double> layer_key_energy_explained = {};
  double key_energy_explained = 0;
};

// Runs the windows through the model. The result does not depend on the number of threads.
// `progress` is told how many tokens have been run. RESOURCE_EXHAUSTED if the memory for a window's
// keys and values cannot be had.
absl::StatusOr<Calibration> Calibrate(Model& model, absl::Span<const TextWindow> windows,
                                      absl::FunctionRef<void(size_t tokens)> progress);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_CALIBRATION_H_
