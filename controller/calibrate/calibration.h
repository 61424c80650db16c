// calibrate: measures a model and learns from it what the controller needs to know, for the tool
// whit-calibrate. Unlike the rest of controller/ it runs models; nothing of the server depends on
// it.
//
// This file: from a model and texts to a policy file. What happens, in order: windows of text are
// drawn (calibration_text); the means of keys and queries are measured (key_calibration); exact
// attention is observed over windows of several lengths (attention_observer), which gives samples
// (importance_samples); the importance model is fitted to them (importance_training), and what the
// error of each rung costs is measured (rung_costs); from both follow prices (price_points); last
// the paper's controller is trained (learned_training).
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

struct CalibrationOptions {
  // For the means of keys and queries.
  int mean_tokens = 32768;
  int mean_context = 1024;
  // For what is learned of tokens: lengths of windows, rising, and tokens of each. Lengths beyond
  // the model's are left out.
  std::vector<int> contexts = {512, 2048, 8192};
  int tokens_of_context = 16384;
  int training_steps = 1500;
  uint64_t seed = 1;
  int32_t bos_id = -1;  // the first token of every window, or -1 for none
};

// What is being done, and what of it is counted.
struct CalibrationPhase {
  const char* name;
  const char* unit;
};
using CalibrationProgress =
    absl::FunctionRef<void(const CalibrationPhase& phase, size_t done, size_t total)>;

// The file's notes tell how it was made and figures of text held out. The result does not depend on
// the number of threads. INVALID_ARGUMENT if the texts are too short; RESOURCE_EXHAUSTED if the
// memory cannot be had.
absl::StatusOr<PolicyFile> Calibrate(Model& model, const ModelIdentity& identity,
                                     absl::Span<const CalibrationText> texts,
                                     CalibrationOptions options, CalibrationProgress progress);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_CALIBRATION_H_
