// What tokens get at each price.
#ifndef WHIT_CONTROLLER_CALIBRATE_PRICE_CURVE_H_
#define WHIT_CONTROLLER_CALIBRATE_PRICE_CURVE_H_

#include <array>
#include <vector>

#include "absl/types/span.h"
#include "controller/calibrate/importance_samples.h"
#include "controller/policy_file.h"

namespace whit {

// Decides as the adaptive policy does: the rung, of K2V2 to K8V8, with the least
//   importance_K * key_error(rung) * |k - mean|^2 + importance_V * value_error(rung) * |v|^2
//     + price * bits of its codes and scales,
// with `predicted` importances (ImportanceFit) of the samples held out. Each context has the same
// weight. From nearly the most bits to nearly the fewest; empty if there are no samples.
std::vector<PolicyFile::PricePoint> PriceCurve(
    absl::Span<const SamplesOfContext> contexts,
    absl::Span<const std::vector<std::array<float, 2>>> predicted,
    const std::array<float, 3>& key_error, const std::array<float, 3>& value_error, int head_dim);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_PRICE_CURVE_H_
