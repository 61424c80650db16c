#include "tests/bench/measurement.h"

#include <algorithm>
#include <limits>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/bench/median.h"

namespace whit {
namespace {

// Longer than the threads of any engine in this process spin after their last loop.
constexpr absl::Duration kSettle = absl::Milliseconds(20);

// Seconds of one decode step or of the prefill.
absl::StatusOr<double> RunOnce(const Workload& workload, int steps, Runner& runner) {
  absl::SleepFor(kSettle);
  if (workload.kind == Workload::Kind::kPrefill) return runner.Prefill(workload.tokens);
  absl::StatusOr<double> seconds = runner.Decode(steps);
  if (!seconds.ok()) return seconds.status();
  return *seconds / steps;
}

absl::Status Prepare(const Workload& workload, Runner& runner) {
  if (workload.kind == Workload::Kind::kPrefill) return absl::OkStatus();
  return runner.Prepare(workload.sequences, workload.tokens);
}

// Multiplications and additions with weights of one decode step or of the prefill.
double WeightOps(const Workload& workload, const ModelConfig& config) {
  const double layer = 2.0 * config.hidden_size * (config.query_size() + config.kv_size()) +
                       3.0 * config.hidden_size * config.ffn_size;
  const double output = 1.0 * config.hidden_size * config.vocab_size;
  const bool prefill = workload.kind == Workload::Kind::kPrefill;
  const double rows = prefill ? workload.tokens : workload.sequences;
  const double logits = prefill ? 1 : workload.sequences;
  return 2 * (config.num_layers * layer * rows + output * logits);
}

// A run at the workload's depth.
absl::StatusOr<double> PrepareAndRun(const Workload& workload, int steps, Runner& runner) {
  if (absl::Status s = Prepare(workload, runner); !s.ok()) return s;
  return RunOnce(workload, steps, runner);
}

}  // namespace

std::vector<Workload> AllWorkloads() {
  const auto decode = Workload::Kind::kDecode, prefill = Workload::Kind::kPrefill;
  return {
      {"decode_d16", decode, 1, 16},       {"decode_d128", decode, 1, 128},
      {"decode_d1024", decode, 1, 1024},   {"decode_d2048", decode, 1, 2048},
      {"decode_d4096", decode, 1, 4096},   {"decode_d8000", decode, 1, 8000},
      {"prefill_512", prefill, 1, 512},    {"prefill_2048", prefill, 1, 2048},
      {"batch1_d1024", decode, 1, 1024},   {"batch4_d1024", decode, 4, 1024},
      {"batch16_d1024", decode, 16, 1024},
  };
}

absl::StatusOr<const Peer::Candidate*> FastestCandidate(const Workload& workload, int steps,
                                                        const Peer& peer) {
  const Peer::Candidate* fastest = nullptr;
  double least = std::numeric_limits<double>::infinity();
  for (const Peer::Candidate& candidate : peer.candidates) {
    absl::StatusOr<double> warm_up = PrepareAndRun(workload, steps, *candidate.runner);
    if (!warm_up.ok()) return warm_up.status();
    absl::StatusOr<double> seconds = PrepareAndRun(workload, steps, *candidate.runner);
    if (!seconds.ok()) return seconds.status();
    if (*seconds < least) {
      least = *seconds;
      fastest = &candidate;
    }
  }
  return fastest;
}

absl::StatusOr<Measurement> Measure(const Workload& workload, const MeasurementOptions& options,
                                    WhitRunner& whit, absl::Span<const Peer> peers,
                                    ReadStream& stream) {
  std::vector<const Peer::Candidate*> candidates;
  for (const Peer& peer : peers) {
    absl::StatusOr<const Peer::Candidate*> fastest =
        FastestCandidate(workload, options.steps, peer);
    if (!fastest.ok()) return fastest.status();
    candidates.push_back(*fastest);
  }
  const bool decode = workload.kind == Workload::Kind::kDecode;
  std::vector<double> seconds, depths;
  std::vector<std::vector<double>> peer_seconds(peers.size());
  double bytes = 0, bytes_per_second = 0;
  for (int run = -1; run < options.repeats; ++run) {  // the first is the warm-up
    if (absl::Status s = Prepare(workload, whit); !s.ok()) return s;
    depths.push_back(whit.depth() + (options.steps - 1) / 2.0);
    absl::StatusOr<double> whit_run = RunOnce(workload, options.steps, whit);
    if (!whit_run.ok()) return whit_run.status();
    seconds.push_back(*whit_run);
    bytes = static_cast<double>(whit.weight_bytes_per_step() + (decode ? whit.kv_bytes() : 0));
    bytes_per_second =
        std::max(bytes_per_second, stream.BytesPerSecond(static_cast<size_t>(bytes)));
    if (run < 0) {
      seconds.clear();
      depths.clear();
      continue;
    }
    for (size_t i = 0; i < candidates.size(); ++i) {
      absl::StatusOr<double> peer_run =
          PrepareAndRun(workload, options.steps, *candidates[i]->runner);
      if (!peer_run.ok()) return peer_run.status();
      peer_seconds[i].push_back(*peer_run);
    }
  }

  Measurement m;
  m.workload = workload;
  m.seconds = Median(seconds);
  m.depth = decode ? Median(depths) : 0;
  const double read_seconds = bytes / bytes_per_second;
  const bool bfloat16 = !decode && options.bfloat16_ops_per_second > 0;
  const double multiply_seconds =
      WeightOps(workload, whit.config()) /
      (bfloat16 ? options.bfloat16_ops_per_second : options.int8_ops_per_second);
  m.roof_seconds = std::max(multiply_seconds, read_seconds);
  m.roof = read_seconds >= multiply_seconds ? "memory" : bfloat16 ? "bf16" : "int8";
  for (size_t i = 0; i < candidates.size(); ++i) {
    m.peers.push_back({.seconds = Median(peer_seconds[i]), .settings = candidates[i]->settings});
  }
  return m;
}

}  // namespace whit
