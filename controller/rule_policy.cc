#include "controller/rule_policy.h"

#include <algorithm>

namespace whit {

void RulePolicy::Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const {
  for (int i = 0; i < tokens.count; ++i) {
    const int position = tokens.first_position + i;
    const auto queries = static_cast<float>(std::max(1, tokens.context - position));
    const double attention =
        tokens.received.sum[i] / queries / EvenAttentionShare(tokens, position);
    const double entropy = tokens.features[i].entropy;
    if (entropy >= thresholds_.entropy_high || attention >= thresholds_.attention_high) {
      rungs[i] = Rung::kK8V8;
    } else if (entropy < thresholds_.entropy_low && attention < thresholds_.attention_low) {
      rungs[i] = Rung::kK2V2;
    } else {
      rungs[i] = Rung::kK4V4;
    }
  }
}

}  // namespace whit
