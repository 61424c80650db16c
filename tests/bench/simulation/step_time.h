// How long a step of the model takes. A pure function, fitted to what whit-bench measures.
#ifndef WHIT_TESTS_BENCH_SIMULATION_STEP_TIME_H_
#define WHIT_TESTS_BENCH_SIMULATION_STEP_TIME_H_

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/model/model.h"

namespace whit {

// Microseconds, of a server with two threads.
struct StepCosts {
  double step = 0;                 // reading the weights once
  double prompt_token = 0;         // its share of the multiplications
  double decoded_token = 0;        // likewise, and sampling
  double depth_kilotoken = 0;      // of decoding: 1,000 tokens of context, whatever their precision
  double depth_kilotoken_bit = 0;  // and for each bit that their elements take
  double prompt_depth_kilotoken = 0;  // of a prompt's token, which shares what it reads with others
};

// Of SmolLM2-135M-Instruct Q4_1 on two cores of an Intel Xeon with AVX-512 VNNI, fitted to what
// `whit-bench` measured there while prompts were multiplied without AMX. What demoting pages costs
// is not in it.
StepCosts MeasuredStepCosts();

// `bits`: what an element of the slices' contexts takes in the mean.
absl::Duration StepTime(const StepCosts& costs, absl::Span<const ForwardSlice> slices, double bits);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_SIMULATION_STEP_TIME_H_
