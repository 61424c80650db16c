// Scheduler: which tokens of which sequences one step runs through the model. A pure function.
#ifndef WHIT_RUNTIME_ENGINE_SCHEDULER_H_
#define WHIT_RUNTIME_ENGINE_SCHEDULER_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "runtime/model/model.h"

namespace whit {

// What the scheduler sees of a running sequence.
struct SequenceView {
  // Its prompt is in the KV cache; each step makes one token.
  bool decoding = false;
  // Otherwise: prompt tokens still to run, and how many at their end are scored, that is, need a
  // row of logits each. The last one before those needs a row too: it speaks of the first of them,
  // or of the first token to be generated.
  int prompt_tokens = 0;
  int scored_tokens = 0;
};

struct StepLimits {
  int max_step_tokens = 0;       // >= the number of sequences
  int prefill_chunk_tokens = 0;  // prompt tokens beside decodes; bounds inter-token latency
  int max_scored_rows = 0;       // bounds the memory of logits
};

struct PlannedSlice {
  size_t sequence = 0;  // index into the views
  int num_tokens = 0;
  ForwardSlice::Logits logits = ForwardSlice::Logits::kNone;
};

// `sequences` stand in order of arrival.
//
// Every decoding sequence gets its token. Prompts share what the limits leave: half of it goes to
// the oldest first, so that no prompt waits for ever; the rest to those with the least left first,
// so that a short prompt does not wait for a long one. A prompt is never cut across the border
// between unscored and scored tokens within one slice.
std::vector<PlannedSlice> PlanStep(const StepLimits& limits,
                                   absl::Span<const SequenceView> sequences);

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_SCHEDULER_H_
