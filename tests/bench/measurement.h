// The rows of whit-bench's table and how each is measured.
#ifndef WHIT_TESTS_BENCH_MEASUREMENT_H_
#define WHIT_TESTS_BENCH_MEASUREMENT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tests/bench/peer.h"
#include "tests/bench/roof.h"
#include "tests/bench/runner.h"
#include "tests/bench/whit_runner.h"

namespace whit {

struct Workload {
  enum class Kind { kDecode, kPrefill };
  std::string name;
  Kind kind = Kind::kDecode;
  int sequences = 1;
  int tokens = 0;  // of each sequence: the depth of a decode, the length of a prefill

  // What it is measured in tokens per second of.
  int TokensPerRun(int steps) const { return kind == Kind::kDecode ? sequences * steps : tokens; }
};

// In the order in which they are best run: a runner's single sequence only grows.
std::vector<Workload> AllWorkloads();

// Of a decode step or of the prefill.
struct PeerTime {
  double seconds = 0;
  std::string settings;  // that were the fastest
};

// One workload, measured.
struct Measurement {
  Workload workload;
  double seconds = 0;           // of a decode step or of the prefill
  double depth = 0;             // tokens that a decode step attended to, on average
  double roof_seconds = 0;      // what the machine needs at least
  std::string roof;             // what is needed for longest: "memory" or how is multiplied
  std::vector<PeerTime> peers;  // in the order of those given

  double TokensPerSecond(double of_seconds) const { return workload.TokensPerRun(1) / of_seconds; }
};

struct MeasurementOptions {
  int repeats = 5;
  int steps = 16;  // decode steps of one repeat
  double int8_ops_per_second = 0;
  double bfloat16_ops_per_second = 0;  // of prompts; 0: they are multiplied in int8
};

// The settings with which a peer is fastest in a run after its first one.
absl::StatusOr<const Peer::Candidate*> FastestCandidate(const Workload& workload, int steps,
                                                        const Peer& peer);

// Medians of `repeats` runs. Whit and the peers take turns, and while one runs the others are idle:
// what a neighbour on the machine takes, it takes from all. Each peer runs with its fastest
// candidate. The roof is the larger of two times: to read the step's weights and KV pages at the
// rate at which the machine streams a buffer of just that size, and to do the weights'
// multiplications and additions at the rate of int8 or, a prompt's, of bfloat16.
absl::StatusOr<Measurement> Measure(const Workload& workload, const MeasurementOptions& options,
                                    WhitRunner& whit, absl::Span<const Peer> peers,
                                    ReadStream& stream);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_MEASUREMENT_H_
