// simulation: hours of traffic against the engine's own queue, admission, scheduler, pressure loop
// and pages, by a clock that jumps from event to event (whit-simulate). What is not the engine's
// is modelled: the clients (clients), the model's weights and the time that a step takes
// (step_time). Nothing here decides what the engine would.
//
// This file: a trace of requests, as recorded.
#ifndef WHIT_TESTS_BENCH_SIMULATION_TRACE_H_
#define WHIT_TESTS_BENCH_SIMULATION_TRACE_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace whit {

struct TracedRequest {
  absl::Duration arrival{};  // since the trace's first request
  int prompt_tokens = 0;
  int generated_tokens = 0;
};

// Lines "TIMESTAMP,ContextTokens,GeneratedTokens" behind a line of titles, as Azure publishes its
// traces of LLM inference; timestamps as "2023-11-16 18:15:46.6805900", in order. INVALID_ARGUMENT
// names the line and what is wrong with it.
absl::StatusOr<std::vector<TracedRequest>> ParseTrace(std::string_view csv);
// NOT_FOUND names the file.
absl::StatusOr<std::vector<TracedRequest>> ReadTrace(const std::string& path);

// The requests in order of arrival at `requests_per_second` in the mean, until `duration` is full.
// A trace that ends sooner begins again.
std::vector<TracedRequest> Repeat(const std::vector<TracedRequest>& trace,
                                  double requests_per_second, absl::Duration duration);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_SIMULATION_TRACE_H_
