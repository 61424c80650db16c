// What tokens get at each price.
#ifndef WHIT_CONTROLLER_CALIBRATE_PRICE_POINTS_H_
#define WHIT_CONTROLLER_CALIBRATE_PRICE_POINTS_H_

#include <array>
#include <vector>

#include "absl/types/span.h"
#include "controller/calibrate/importance_samples.h"
#include "controller/policy_file.h"
#include "controller/rung_choice.h"

namespace whit {

// Decides as the adaptive policy does, by CheapestRung, with `predicted` importances
// (ImportanceFit) of the samples held out. Each context has the same weight. From nearly the most
// bits to nearly the fewest; empty if there are no samples.
std::vector<PolicyFile::PricePoint> MeasurePrices(
    absl::Span<const SamplesOfContext> contexts,
    absl::Span<const std::vector<std::array<float, 2>>> predicted, const RungErrors& errors,
    int head_dim);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_PRICE_POINTS_H_
