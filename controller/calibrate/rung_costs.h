// What errors of 2, 4 and 8 bits in keys and in values cost, measured against their first-order
// estimate.
//
// The estimate of a rung is its error times the importance of what is in error. It does not know
// how errors of keys compare with errors of values once they have gone through the layers, and it
// is too low where errors are large. So text is run at static rungs, and its KL divergence from
// exact keys and values compared with the estimate.
#ifndef WHIT_CONTROLLER_CALIBRATE_RUNG_COSTS_H_
#define WHIT_CONTROLLER_CALIBRATE_RUNG_COSTS_H_

#include <array>
#include <cstddef>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/calibrate/calibration_text.h"
#include "kvpool/rung.h"
#include "runtime/model/model.h"

namespace whit {

// KL divergence in nats per token, by rung; 0 for FP16.
using RungDivergence = std::array<double, kNumRungs>;

// Mean over all tokens of the windows. The model has its key means. `progress` is told the tokens
// run, kDivergenceRuns times those of the windows in all.
inline constexpr size_t kDivergenceRuns = kNumRungs;
absl::StatusOr<RungDivergence> MeasureDivergence(Model& model, absl::Span<const TextWindow> windows,
                                                 absl::FunctionRef<void(size_t tokens)> progress);

// How many times its first-order estimate an error costs, by bits 2, 4, 8; values at 4 bits are 1.
struct RungCosts {
  std::array<float, 3> key = {2, 1, 1}, value = {3, 1, 1};
};

// `sensitivities` is [pair][2], means of importance * energy. The divergences of K8V4 to K2V2
// differ by the cost of one step each; 8 bits count like 4, since their error is too small to
// measure. A cost is at most kMaxRungCost times away from the other kind's and at least that of
// more bits; what is not measurable stays at the default, found on one model.
inline constexpr float kMaxRungCost = 8;
RungCosts CostsOf(const RungDivergence& divergence, absl::Span<const float> sensitivities,
                  const std::array<float, 3>& key_error, const std::array<float, 3>& value_error);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_RUNG_COSTS_H_
