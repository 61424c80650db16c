// Runs text through a model with keys and values kept in FP16.
#ifndef WHIT_CONTROLLER_CALIBRATE_EXACT_RUN_H_
#define WHIT_CONTROLLER_CALIBRATE_EXACT_RUN_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/model/model.h"

namespace whit {

// With room for `tokens` whose pages are all in FP16. RESOURCE_EXHAUSTED if the memory cannot be
// had.
absl::StatusOr<std::unique_ptr<PagePool>> PoolForOneSequence(const ModelConfig& config,
                                                             size_t tokens);

// Appends the tokens to `kv`, pass by pass, and tells of each pass the position of its first token,
// the number of its tokens, and their logits if they are asked for.
absl::Status RunExactly(
    Model& model, absl::Span<const int32_t> tokens, PageTable& kv, ForwardSlice::Logits logits,
    absl::FunctionRef<void(int first, int count, absl::Span<const float> logits)> after_pass,
    ActivationFormat activations = PromptActivations());

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_EXACT_RUN_H_
