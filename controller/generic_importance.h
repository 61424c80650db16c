// Importance of tokens of a model that nobody has calibrated.
//
// What was found on one model to hold for all of its layers and heads alike: a token whose last
// queries still attend to it, as measured by the average of all queries since it, goes on to
// matter; one that only its neighbours attended to does not, however much that was. What attention
// it got in all says little more. Large keys lose more than small ones, and so do, in part, large
// values. How much the layers and heads themselves differ, which is most of what a calibrated model
// knows, cannot be told from this.
#ifndef WHIT_CONTROLLER_GENERIC_IMPORTANCE_H_
#define WHIT_CONTROLLER_GENERIC_IMPORTANCE_H_

#include <vector>

#include "controller/importance_features.h"
#include "controller/policy_file.h"
#include "controller/rung_choice.h"

namespace whit {

// With 2 bits counting 1.6 times: they cost more than a first-order estimate says.
inline constexpr RungErrors kGenericErrors = {.key = {0.18f, 0.0087f, 3.5e-5f},
                                              .value = {0.19f, 0.0087f, 3.5e-5f}};

// Importance times squared norm of the keys and values of the `count` tokens from the `first` on,
// whose features are in `block`.
void GenericLosses(const LeavingTokens& tokens, int first, int count,
                   const ImportanceFeatureBlock& block, float* key_losses, float* value_losses);

// Prices at which tokens get these bits if their losses are spread as they were found to be; those
// of another model are learned as it runs (price.h).
std::vector<PolicyFile::PricePoint> GenericPrices(int head_dim);

}  // namespace whit

#endif  // WHIT_CONTROLLER_GENERIC_IMPORTANCE_H_
