// Importance of tokens of a model that nobody has calibrated.
//
// What was found on one model to hold for all of its layers and heads: the logarithm of a token's
// importance rises with the attention it has received, above all lately, and with the norms of its
// value and key; keys matter some 3.5 times as much as values. The weights are those of a linear
// fit to standardized features; the features' spreads are round figures. Everything is relative, to
// an even share of attention and to the other tokens of the same page, since no model's own scales
// are known.
#ifndef WHIT_CONTROLLER_GENERIC_IMPORTANCE_H_
#define WHIT_CONTROLLER_GENERIC_IMPORTANCE_H_

#include <vector>

#include "controller/importance_features.h"
#include "controller/policy_file.h"
#include "controller/rung_choice.h"

namespace whit {

// With 2 bits counting twice for keys and three times for values: they cost more than a first-order
// estimate says.
inline constexpr RungErrors kGenericErrors = {.key = {0.24f, 0.0095f, 4e-5f},
                                              .value = {0.36f, 0.0095f, 4e-5f}};

// Importance times squared norm of the keys and values of the `count` tokens from the `first` on,
// whose features are in `block`.
void GenericLosses(const LeavingTokens& tokens, int first, int count,
                   const ImportanceFeatureBlock& block, float* key_losses, float* value_losses);

// Prices at which tokens get these bits if the logarithms of their losses are spread as they were
// found to be.
std::vector<PolicyFile::PricePoint> GenericPrices(int head_dim);

}  // namespace whit

#endif  // WHIT_CONTROLLER_GENERIC_IMPORTANCE_H_
