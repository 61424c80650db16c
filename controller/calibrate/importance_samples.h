// What the controllers learn from: tokens of text as they look when they leave the ring, and how
// much errors in them mattered afterwards.
#ifndef WHIT_CONTROLLER_CALIBRATE_IMPORTANCE_SAMPLES_H_
#define WHIT_CONTROLLER_CALIBRATE_IMPORTANCE_SAMPLES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/calibrate/calibration_text.h"
#include "controller/importance.h"
#include "controller/token_signals.h"
#include "kvpool/key_means.h"
#include "runtime/model/model.h"

namespace whit {

// A token in one (layer, KV head).
struct ImportanceSample {
  int pair = 0;  // layer * num_kv_heads + kv_head
  ImportanceFeatures features = {};
  // Of errors in its key and value, per unit of squared error and query that came after it was
  // decided (attention_observer.h).
  std::array<float, 2> importance = {};

  // Squared length of the key, relative to its mean, and of the value.
  std::array<float, 2> energy() const;
};

// A token in all layers and heads together.
struct TokenSample {
  TokenFeatures features;
  std::array<float, 2> importance = {};  // sums over them of importance * energy
};

// Windows of one length.
struct SamplesOfContext {
  int context = 0;
  std::vector<ImportanceSample> learned, held_out;
  std::vector<TokenSample> tokens;  // of both kinds of windows
};

struct CollectedSamples {
  std::vector<SamplesOfContext> contexts;  // in the order of the windows
  // Squared error of keys relative to their means and of values, over their energy, mean over
  // tokens; by bits 2, 4, 8. Measured in pages of K2V2, K4V4, K8V8.
  std::array<float, 3> key_error = {}, value_error = {};
};

struct SampleOptions {
  uint64_t seed = 0;
  // About so many in all, the same of each length: it bounds the memory, of 44 bytes a sample.
  size_t max_samples = 4'000'000;
};

// How many tokens a ring holds is drawn for each window (RingSizes), since rings grow with the
// context; tokens leave it in blocks, which are as in decode or as in prefill.
inline constexpr std::array<int, 4> kRingSizes = {32, 64, 128, 256};

// Runs the windows (DrawMixedWindows) through the model with exact keys and values. `means` are
// prepared for the longest window. `progress` is told how many tokens have been run. The result
// does not depend on the number of threads. RESOURCE_EXHAUSTED if the memory cannot be had.
absl::StatusOr<CollectedSamples> CollectSamples(Model& model, const KeyMeans& means,
                                                absl::Span<const float> query_means,
                                                absl::Span<const TextWindow> windows,
                                                const SampleOptions& options,
                                                absl::FunctionRef<void(size_t tokens)> progress);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_IMPORTANCE_SAMPLES_H_
