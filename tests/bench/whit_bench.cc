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
#include "tests/bench/llama_library.h"
#include "tests/bench/llama_runner.h"
#include "tests/bench/measurement.h"
#include "tests/bench/neighbour_load.h"
#include "tests/bench/report.h"
#include "tests/bench/roof.h"
#include "tests/bench/whit_runner.h"

namespace whit {
namespace {

constexpr char kDescription[] =
    "Measures Whit's forward pass on a model: decode at several depths, prefill, and batches, in\n"
    "tokens per second (batches: of all sequences together), and the microseconds that one more\n"
    "token of context adds to a step. Beside each stands the share reached of the roof: what this\n"
    "machine, with these threads, could do at best. A decode step cannot be faster than reading "
    "its\n"
    "weights and KV pages, at the rate measured for a buffer of the same size; nor can anything "
    "be\n"
    "faster than its multiplications with weights at the measured int8 rate (attention's are not\n"
    "counted). With --peer, llama.cpp runs the same work on the same file, in turns with Whit, "
    "with\n"
    "or without flash attention, whichever is faster; with --versus Whit itself does, at another\n"
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
  bool peer = false;
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

// What Whit is compared with.
struct Peer {
  std::unique_ptr<LlamaLibrary> library;
  LlamaModelPtr model{nullptr, nullptr};
  std::vector<std::unique_ptr<Runner>> runners;  // with the settings to choose from
  std::string name;                              // empty: no peer
};

absl::StatusOr<Peer> LoadLlama(const Options& options, const ModelConfig& config, int max_depth) {
  Peer peer;
  absl::StatusOr<std::unique_ptr<LlamaLibrary>> library =
      LlamaLibrary::Load(options.peer_directory);
  if (!library.ok()) return library.status();
  absl::StatusOr<int32_t> kv_type = ParseLlamaKvType(options.peer_kv);
  if (!kv_type.ok()) return kv_type.status();
  peer.library = *std::move(library);
  absl::StatusOr<LlamaModelPtr> model = LoadLlamaModel(*peer.library, options.model);
  if (!model.ok()) return model.status();
  peer.model = *std::move(model);
  for (bool flash_attention : {true, false}) {
    if (!flash_attention && options.peer_kv != "f16") continue;  // it quantizes V only with it
    peer.runners.push_back(
        std::make_unique<LlamaRunner>(*peer.library, *peer.model,
                                      LlamaRunner::Options{.threads = options.threads,
                                                           .vocab_size = config.vocab_size,
                                                           .max_depth = max_depth,
                                                           .kv_type = *kv_type,
                                                           .flash_attention = flash_attention}));
  }
  peer.name = absl::StrCat("llama.cpp, KV ", options.peer_kv);
  return peer;
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

absl::StatusOr<Peer> LoadPeer(const Options& options, const ModelConfig& config, int max_kv_tokens,
                              int max_depth, ThreadPool& threads) {
  if (options.peer) return LoadLlama(options, config, max_depth);
  Peer peer;
  if (options.versus.empty()) return peer;
  absl::StatusOr<std::unique_ptr<WhitRunner>> whit =
      LoadWhit(options, options.versus, max_kv_tokens, threads);
  if (!whit.ok()) return whit.status();
  peer.runners.push_back(*std::move(whit));
  peer.name = absl::StrCat("Whit, KV ", options.versus);
  return peer;
}

Row ThroughputRow(const Measurement& m, const std::string& peer) {
  Row row = {.name = m.workload.name,
             .value = m.TokensPerSecond(m.seconds),
             .unit = "tok/s",
             .roof_share = m.roof_seconds / m.seconds,
             .roof = m.compute_bound ? "int8" : "memory"};
  if (m.peer_seconds) {
    row.peer = peer;
    row.peer_value = m.TokensPerSecond(*m.peer_seconds);
    row.ratio = *m.peer_seconds / m.seconds;
  }
  return row;
}

Row AttentionRow(const Measurement& shallow, const Measurement& deep, const std::string& peer) {
  const double tokens = deep.depth - shallow.depth;
  const double us = 1e6 * (deep.seconds - shallow.seconds) / tokens;
  const double roof_us = 1e6 * (deep.roof_seconds - shallow.roof_seconds) / tokens;
  Row row = {.name = kAttentionRow,
             .value = us,
             .unit = "us",
             .roof_share = roof_us / us,
             .roof = "memory"};
  if (shallow.peer_seconds && deep.peer_seconds) {
    row.peer = peer;
    // The peer runs at exactly the depths asked for.
    const int peer_tokens = deep.workload.tokens - shallow.workload.tokens;
    row.peer_value = 1e6 * (*deep.peer_seconds - *shallow.peer_seconds) / peer_tokens;
    row.ratio = *row.peer_value / us;
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
  absl::StatusOr<Peer> peer = LoadPeer(options, config, max_tokens, max_depth, threads);
  if (!peer.ok()) return peer.status();
  std::vector<Runner*> peers;
  for (const auto& runner : peer->runners) peers.push_back(runner.get());

  const Report report(options.json);
  report.Note(absl::StrFormat("%s, KV %s, %d threads, medians of %d runs%s", config.name,
                              options.kv_policy, options.threads, options.measurement.repeats,
                              peer->name.empty() ? "" : "; peer: " + peer->name));
  const FoundPolicy* const policy_file = (*whit)->policy_file();
  report.Note("policy file: " + (policy_file == nullptr ? "none" : policy_file->path));
  ReadStream stream(DramBufferBytes(), threads);
  const size_t weight_bytes = (*whit)->weight_bytes_per_step();
  MeasurementOptions measurement = options.measurement;
  measurement.int8_ops_per_second = Int8OpsPerSecond(threads);
  report.Print({.name = "dram_read",
                .value = stream.BytesPerSecond(stream.max_bytes()) / 1e9,
                .unit = "GB/s"});
  report.Print(
      {.name = "weights_read", .value = stream.BytesPerSecond(weight_bytes) / 1e9, .unit = "GB/s"});
  report.Print(
      {.name = "int8_dot", .value = measurement.int8_ops_per_second / 1e9, .unit = "GOP/s"});
  report.Note(absl::StrFormat(
      "dram_read streams %.1f GB, weights_read the %.0f MB that a step reads of the weights (the "
      "last "
      "cache has %.0f MB);\nint8_dot counts multiplications and additions on %s.",
      stream.max_bytes() / 1e9, weight_bytes / 1e6, LastLevelCacheBytes() / 1e6, SimdTargetName()));

  report.Header();
  const NeighbourLoad neighbours;
  std::map<std::string, Measurement> measured;
  for (const Workload& workload : workloads) {
    absl::StatusOr<Measurement> m = Measure(workload, measurement, **whit, peers, stream);
    if (!m.ok()) return m.status();
    if (wanted.count(workload.name) != 0) report.Print(ThroughputRow(*m, peer->name));
    measured.emplace(workload.name, *std::move(m));
    const auto shallow = measured.find(kShallowRow), deep = measured.find(kDeepRow);
    if (workload.name == kDeepRow && wanted.count(kAttentionRow) != 0) {
      report.Print(AttentionRow(shallow->second, deep->second, peer->name));
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
  app.add_option("--threads", options.threads, "threads, for either engine")
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
  CLI::Option* const peer = app.add_flag("--peer", options.peer, "compare with llama.cpp");
  app.add_option("--versus", options.versus,
                 "compare with Whit at another precision, a policy as of --kv-policy")
      ->excludes(peer);
  app.add_option("--peer-dir", options.peer_directory,
                 "folder that holds llama.cpp's libraries; tests/bench/fetch_peer fills it")
      ->capture_default_str();
  app.add_option("--peer-kv", options.peer_kv, "type of the peer's KV cache: f16, q8_0 or q4_0")
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
