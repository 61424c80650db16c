// The controller of "Don't Waste Bits!" (Haeri Boroujeni et al. 2026): a network that chooses one
// rung per token for all layers and heads, from the token's TokenFeatures.
#ifndef WHIT_CONTROLLER_LEARNED_MODEL_H_
#define WHIT_CONTROLLER_LEARNED_MODEL_H_

#include <array>
#include <vector>

#include "kvpool/rung.h"

namespace whit {

// The paper's {2, 4, 8, 16} bits.
inline constexpr std::array<Rung, 4> kLearnedRungs = {Rung::kK2V2, Rung::kK4V4, Rung::kK8V8,
                                                      Rung::kFp16};

// 4-128-128-4, ReLU; the rung with the largest output is chosen (softmax, argmax).
//   z = (feature - center) / spread, features in the order of TokenFeatures
struct LearnedModel {
  static constexpr int kFeatures = 4, kHidden = 128, kClasses = 4;

  std::array<float, kFeatures> centers{}, spreads{};
  std::vector<float> weights1;  // [kFeatures][kHidden]
  std::vector<float> bias1;     // [kHidden]
  std::vector<float> weights2;  // [kHidden in][kHidden out]
  std::vector<float> bias2;     // [kHidden]
  std::vector<float> weights3;  // [kHidden][kClasses]
  std::array<float, kClasses> bias3{};

  bool operator==(const LearnedModel&) const = default;
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_LEARNED_MODEL_H_
