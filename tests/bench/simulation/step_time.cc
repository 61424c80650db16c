#include "tests/bench/simulation/step_time.h"

namespace whit {

StepCosts MeasuredStepCosts() {
  // From rows of one run each for fp16, static:K8V8 and static:K4V4 (tokens a second, the policies'
  // range): decode_d16 315 to 332, batch4_d1024 385 (fp16), batch16_d1024 462 (fp16) and 574
  // (K8V8), prefill_512 1,673 to 1,731, prefill_2048 1,148 to 1,299; attention_us_per_token 1.249,
  // 0.708 and 0.433, which is a straight line over 16, 8.25 and 4.25 bits.
  return {.step = 2300,
          .prompt_token = 503,
          .decoded_token = 790,
          .depth_kilotoken = 140,
          .depth_kilotoken_bit = 69,
          .prompt_depth_kilotoken = 291};
}

absl::Duration StepTime(const StepCosts& costs, absl::Span<const ForwardSlice> slices,
                        double bits) {
  double microseconds = costs.step;
  for (const ForwardSlice& slice : slices) {
    const auto tokens = static_cast<double>(slice.tokens.size());
    const double mean_depth = slice.first_position + tokens / 2;
    if (slice.activations == ActivationFormat::kInt16) {
      microseconds +=
          tokens * costs.decoded_token +
          tokens * mean_depth / 1000 * (costs.depth_kilotoken + bits * costs.depth_kilotoken_bit);
    } else {
      microseconds +=
          tokens * (costs.prompt_token + mean_depth / 1000 * costs.prompt_depth_kilotoken);
    }
  }
  return absl::Microseconds(microseconds);
}

}  // namespace whit
