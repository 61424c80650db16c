// Simulation: clients that behave as a trace says, and an engine that serves them in simulated
// time.
#ifndef WHIT_TESTS_BENCH_SIMULATION_SIMULATION_H_
#define WHIT_TESTS_BENCH_SIMULATION_SIMULATION_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine/engine.h"
#include "tests/bench/simulation/step_time.h"
#include "tests/bench/simulation/trace.h"

namespace whit {

// The model whose server is simulated. A stand-in with random weights takes its place, with as many
// heads' lists of pages as `lists` says and the same head_dim, so that pages have their true sizes.
// Each of its lists stands for several, and its pool is smaller in proportion; figures are scaled
// back. Fewer lists run faster. What the engine bounds in pages a step (LoweringBudget) reaches
// further then; with lists = num_lists() nothing is scaled.
struct ModelledServer {
  int num_layers = 30, num_kv_heads = 3, head_dim = 64;  // SmolLM2-135M
  int context_length = 8192;
  int lists = 3;
  StepCosts costs = MeasuredStepCosts();

  int num_lists() const { return num_layers * num_kv_heads; }
  // Of what the stand-in's figures are multiplied by.
  double scale() const { return static_cast<double>(num_lists()) / lists; }
};

struct ClientBehaviour {
  PrecisionPolicySpec policy{};
  absl::Duration deadline = absl::InfiniteDuration();  // from when the first try arrives
  // Of those who are told to come back later, each does so this many times, when it was told to.
  int retries = 0;
  // This share of them hang up, at random within a minute.
  double hang_up_share = 0;
};

struct SimulationOptions {
  EngineOptions engine{};  // of the modelled server
  ModelledServer server{};
  ClientBehaviour clients{};
  uint32_t seed = 1;
};

struct Distribution {
  std::vector<double> values{};
  double Mean() const;
  // Sorts the values. 0 of none.
  double Percentile(double percent);
  double Max() { return Percentile(100); }
};

struct SimulationResult {
  int requests = 0;
  int finished = 0;
  int finished_after_retry = 0;
  int hung_up = 0;
  int expired_waiting = 0, expired_running = 0;
  std::map<std::string, int> rejected;  // by reason, for good
  int rejections = 0;                   // with those who came back
  // What must never be: requests that were admitted and failed, bytes or places beyond their
  // bounds, rejections without a reason or an estimate. The first few in words.
  int broken = 0;
  std::vector<std::string> broken_examples;

  absl::Duration duration{};
  int64_t steps = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t finished_request_tokens = 0;
  int peak_running = 0;
  double mean_running = 0;
  int peak_waiting = 0;
  int64_t peak_waiting_prompt_tokens = 0;
  Distribution ttft_seconds, itl_seconds, queue_seconds, pushback_seconds;

  // Of the modelled server.
  double capacity_bytes = 0, reservable_bytes = 0;
  double peak_used_bytes = 0, peak_reserved_bytes = 0;
  Distribution true_bits;  // of each finished request, when it ended
  // Packed bits of the decided tokens, at one moment: the most over the least among the requests
  // that have at least kComparedTokens of them. All have the same floor.
  Distribution spread;
  KvRelief::Demotions demotions{};
  double least_price = 0, highest_price = 0;
};
inline constexpr int kComparedTokens = 256;

// INVALID_ARGUMENT as Engine::Create. The same options and requests give the same result.
absl::StatusOr<SimulationResult> Simulate(const SimulationOptions& options,
                                          const std::vector<TracedRequest>& requests);

// How many of the trace's requests the server finishes a second when more than enough come for so
// long. It is counted in tokens: who is turned away need not be like the others.
absl::StatusOr<double> SaturatedRate(const SimulationOptions& options,
                                     const std::vector<TracedRequest>& trace,
                                     absl::Duration duration);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_SIMULATION_SIMULATION_H_
