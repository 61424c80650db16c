// whit-bench: see --help.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/ops/thread_pool.h"
#include "tests/bench/measurement.h"
#include "tests/bench/neighbour_load.h"
#include "tests/bench/peer.h"
#include "tests/bench/report.h"
#include "tests/bench/roof.h"
#include "tests/bench/whit_runner.h"

namespace whit {
namespace {

constexpr char kDescription[] =
    "Measures Whit's forward pass on a model: decode at several depths, prefill, and batches, in\n"
    "tokens per second (batches: of all sequences together), and the microseconds that one more\n"
    "token of context adds to a step. Beside each stands the share reached of the roof: what this\n"
    "machine, with these threads, could do at best. A decode step cannot be faster than reading\n"
    "its weights and KV pages, at the rate measured for a buffer of the same size; nor can\n"
    "anything be faster than its multiplications with weights at the measured rate: that of int8\n"
    "or, for prompts on a CPU with AMX, of bf16 (attention's are not counted). With --peer other\n"
    "engines run the same work on the same model, in turns with Whit, as many threads each, with\n"
    "those of their settings that are fastest for the row; beside each figure stand Whit's speed\n"
    "as a multiple of it and the settings. Of llama.cpp the C API is timed, with or without flash\n"
    "attention; of OpenVINO GenAI (continuous batching; bf16 or f32 matrix products, KV u8 or\n"
    "f16) and vLLM (bf16 weights, or 4 bits in AWQ's form) the steps of their own loops, with\n"
    "sampling, in processes that are stopped while others run. Depth is reached before timing: no\n"
    "decode figure has a prompt in it. With --versus, Whit itself is compared with at another\n"
    "precision.";

// The slope between two decode rows, in microseconds per token of depth.
constexpr char kAttentionRow[] = "attention_us_per_token";
constexpr char kShallowRow[] = "decode_d1024";
constexpr char kDeepRow[] = "decode_d8000";

struct Options {
  std::string model;
  int threads = AvailableCpus();
  MeasurementOptions measurement;
  std::string kv_policy = PrecisionPolicySpec().ToString();
  std::string kv_policy_file;
  std::vector<std::string> only;
  std::string peers;  // names as ParsePeerNames takes them; empty: none
  std::string versus;
  std::string peer_directory = "build/peer";
  std::string peer_kv = "f16";
  bool json = false;
};

std::set<std::string> AllRowNames() {
  std::set<std::string> names = {kAttentionRow};
  for (const Workload& workload : AllWorkloads()) names.insert(workload.name);
  return names;
}

// The workloads that the wanted rows need.
std::vector<Workload> WantedWorkloads(const std::set<std::string>& wanted) {
  std::vector<Workload> workloads = AllWorkloads();
  const bool slope = wanted.count(kAttentionRow) != 0;
  workloads.erase(std::remove_if(workloads.begin(), workloads.end(),
                                 [&](const Workload& w) {
                                   const bool end_of_slope =
                                       w.name == kShallowRow || w.name == kDeepRow;
                                   return wanted.count(w.name) == 0 && !(slope && end_of_slope);
                                 }),
                  workloads.end());
  return workloads;
}

absl::StatusOr<std::unique_ptr<WhitRunner>> LoadWhit(const Options& options,
                                                     const std::string& kv_policy,
                                                     int max_kv_tokens, ThreadPool& threads) {
  const absl::StatusOr<PrecisionPolicySpec> policy = ParsePrecisionPolicy(kv_policy);
  if (!policy.ok()) return policy.status();
  return WhitRunner::Create({.model_path = options.model,
                             .kv_policy = *policy,
                             .kv_policy_file = options.kv_policy_file,
                             .max_kv_tokens = max_kv_tokens},
                            threads);
}

// What Whit is compared with.
absl::StatusOr<std::vector<Peer>> LoadPeers(const Options& options, const ModelConfig& config,
                                            int max_kv_tokens, int max_depth, ThreadPool& threads) {
  std::vector<Peer> peers;
  if (!options.versus.empty()) {
    absl::StatusOr<std::unique_ptr<WhitRunner>> whit =
        LoadWhit(options, options.versus, max_kv_tokens, threads);
    if (!whit.ok()) return whit.status();
    Peer& peer = peers.emplace_back();
    peer.name = absl::StrCat("Whit, KV ", options.versus);
    peer.candidates.push_back({.settings = "", .runner = *std::move(whit)});
  }
  if (options.peers.empty()) return peers;
  const absl::StatusOr<std::vector<std::string>> names = ParsePeerNames(options.peers);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    absl::StatusOr<Peer> peer = LoadPeer(name, {.model = options.model,
                                                .directory = options.peer_directory,
                                                .llama_kv = options.peer_kv,
                                                .threads = options.threads,
                                                .vocab_size = config.vocab_size,
                                                .max_depth = max_depth});
    if (!peer.ok()) return peer.status();
    peers.push_back(*std::move(peer));
  }
  return peers;
}

Row ThroughputRow(const Measurement& m, absl::Span<const std::string> peers) {
  Row row = {.name = m.workload.name,
             .value = m.TokensPerSecond(m.seconds),
             .unit = "tok/s",
             .roof_share = m.roof_seconds / m.seconds,
             .roof = m.roof};
  for (size_t i = 0; i < peers.size(); ++i) {
    row.peers.push_back({.name = peers[i],
                         .value = m.TokensPerSecond(m.peers[i].seconds),
                         .ratio = m.peers[i].seconds / m.seconds,
                         .settings = m.peers[i].settings});
  }
  return row;
}

Row AttentionRow(const Measurement& shallow, const Measurement& deep,
                 absl::Span<const std::string> peers) {
  const double tokens = deep.depth - shallow.depth;
  const double us = 1e6 * (deep.seconds - shallow.seconds) / tokens;
  const double roof_us = 1e6 * (deep.roof_seconds - shallow.roof_seconds) / tokens;
  Row row = {.name = kAttentionRow,
             .value = us,
             .unit = "us",
             .roof_share = roof_us / us,
             .roof = "memory"};
  for (size_t i = 0; i < peers.size(); ++i) {
    // A peer runs at exactly the depths asked for.
    const int peer_tokens = deep.workload.tokens - shallow.workload.tokens;
    const double peer_us = 1e6 * (deep.peers[i].seconds - shallow.peers[i].seconds) / peer_tokens;
    row.peers.push_back({.name = peers[i], .value = peer_us, .ratio = peer_us / us});
  }
  return row;
}

// At least 1 GiB and four times the last cache, but no more than half the free memory.
size_t DramBufferBytes() {
  const size_t free = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return std::min(free / 2, std::max(size_t{1} << 30, 4 * LastLevelCacheBytes()));
}

absl::Status Run(const Options& options) {
  const std::set<std::string> wanted =
      options.only.empty() ? AllRowNames()
                           : std::set<std::string>(options.only.begin(), options.only.end());
  const std::vector<Workload> workloads = WantedWorkloads(wanted);
  int max_tokens = 0, max_depth = 0;
  for (const Workload& w : workloads) {
    // A sixteenth more is room for the tokens that runs add.
    const int depth = w.tokens + w.tokens / 16 + options.measurement.steps;
    max_tokens = std::max(max_tokens, w.sequences * (depth + kTileTokens));
    if (w.sequences == 1) max_depth = std::max(max_depth, w.tokens);
  }

  ThreadPool threads(options.threads);
  absl::StatusOr<std::unique_ptr<WhitRunner>> whit =
      LoadWhit(options, options.kv_policy, max_tokens, threads);
  if (!whit.ok()) return whit.status();
  const ModelConfig& config = (*whit)->config();
  const absl::StatusOr<std::vector<Peer>> peers =
      LoadPeers(options, config, max_tokens, max_depth, threads);
  if (!peers.ok()) return peers.status();
  std::vector<std::string> peer_names;
  std::vector<pid_t> processes;
  for (const Peer& peer : *peers) {
    peer_names.push_back(peer.name);
    processes.insert(processes.end(), peer.processes.begin(), peer.processes.end());
  }

  const Report report(options.json);
  report.Note(absl::StrFormat("%s, KV %s, %d threads, medians of %d runs%s", config.name,
                              options.kv_policy, options.threads, options.measurement.repeats,
                              peer_names.empty()
                                  ? ""
                                  : "; beside a peer's figure: Whit's speed as a multiple of it, "
                                    "and the peer's settings"));
  const FoundPolicy* const policy_file = (*whit)->policy_file();
  report.Note("policy file: " + (policy_file == nullptr ? "none" : policy_file->path));
  ReadStream stream(DramBufferBytes(), threads);
  const size_t weight_bytes = (*whit)->weight_bytes_per_step();
  MeasurementOptions measurement = options.measurement;
  measurement.int8_ops_per_second = Int8OpsPerSecond(threads);
  measurement.bfloat16_ops_per_second = BFloat16OpsPerSecond(threads);
  report.Print({.name = "dram_read",
                .value = stream.BytesPerSecond(stream.max_bytes()) / 1e9,
                .unit = "GB/s"});
  report.Print(
      {.name = "weights_read", .value = stream.BytesPerSecond(weight_bytes) / 1e9, .unit = "GB/s"});
  report.Print(
      {.name = "int8_dot", .value = measurement.int8_ops_per_second / 1e9, .unit = "GOP/s"});
  if (measurement.bfloat16_ops_per_second > 0) {
    report.Print({.name = "bf16_tiles",
                  .value = measurement.bfloat16_ops_per_second / 1e9,
                  .unit = "GOP/s"});
  }
  report.Note(absl::StrFormat(
      "dram_read streams %.1f GB, weights_read the %.0f MB that a step reads of the weights (the "
      "last "
      "cache has %.0f MB);\nint8_dot counts multiplications and additions on %s, bf16_tiles those "
      "of AMX, if the CPU "
      "has it.",
      stream.max_bytes() / 1e9, weight_bytes / 1e6, LastLevelCacheBytes() / 1e6, SimdTargetName()));

  report.Header(peer_names);
  const NeighbourLoad neighbours(processes);
  std::map<std::string, Measurement> measured;
  for (const Workload& workload : workloads) {
    absl::StatusOr<Measurement> m = Measure(workload, measurement, **whit, *peers, stream);
    if (!m.ok()) return m.status();
    if (wanted.count(workload.name) != 0) report.Print(ThroughputRow(*m, peer_names));
    measured.emplace(workload.name, *std::move(m));
    const auto shallow = measured.find(kShallowRow), deep = measured.find(kDeepRow);
    if (workload.name == kDeepRow && wanted.count(kAttentionRow) != 0) {
      report.Print(AttentionRow(shallow->second, deep->second, peer_names));
    }
  }
  if (const std::optional<double> cpus = neighbours.Cpus(); cpus && *cpus > 0.05) {
    std::fprintf(stderr,
                 "whit-bench: other processes kept %.2f CPUs busy; figures of a quiet machine are "
                 "better\n",
                 *cpus);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app(kDescription, "whit-bench");
  app.add_option("--model", options.model, "GGUF file")->required()->envname("WHIT_MODEL");
  app.add_option("--threads", options.threads, "threads of each engine")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--repeats", options.measurement.repeats, "runs that a median is taken of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--steps", options.measurement.steps, "decode steps of one run")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--only", options.only,
                 "rows to measure, separated by commas: " + absl::StrJoin(AllRowNames(), ", "))
      ->delimiter(',')
      ->check(CLI::IsMember(AllRowNames()));
  app.add_option("--kv-policy", options.kv_policy,
                 "precision of Whit's keys and values, as whitd's flag of that name")
      ->capture_default_str();
  app.add_option(
      "--kv-policy-file", options.kv_policy_file,
      "what whit-calibrate wrote for this model, found as whitd finds it by default; off: "
      "none, and attention has no means to take account of");
  CLI::Option* const peer =
      app.add_option("--peer", options.peers,
                     "compare with these engines, separated by commas: llama.cpp (also if none is "
                     "named), openvino, vllm")
          ->expected(0, 1)
          ->default_str(kLlamaCpp);
  app.add_option("--versus", options.versus,
                 "compare with Whit at another precision, a policy as of --kv-policy")
      ->excludes(peer);
  app.add_option("--peer-dir", options.peer_directory,
                 "folder that holds the peers; tests/bench/fetch_peer fills it")
      ->capture_default_str();
  app.add_option("--peer-kv", options.peer_kv, "type of llama.cpp's KV cache: f16, q8_0 or q4_0")
      ->capture_default_str();
  app.add_flag("--json", options.json, "one JSON object a row");
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = Run(options); !status.ok()) {
    std::fprintf(stderr, "whit-bench: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace whit

int main(int argc, char** argv) { return whit::Main(argc, argv); }
