// The engines that Whit is compared with.
#ifndef WHIT_TESTS_BENCH_PEER_H_
#define WHIT_TESTS_BENCH_PEER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tests/bench/llama_library.h"
#include "tests/bench/llama_runner.h"
#include "tests/bench/runner.h"

namespace whit {

inline constexpr char kLlamaCpp[] = "llama.cpp";
inline constexpr char kOpenVino[] = "openvino";
inline constexpr char kVllm[] = "vllm";

// One engine, ready with each of the settings of which the fastest at a workload is compared with.
struct Peer {
  struct Candidate {
    std::string settings;  // empty: there is no choice
    std::unique_ptr<Runner> runner;
  };

  std::string name;
  std::unique_ptr<LlamaLibrary> llama_library;  // outlives llama_model
  LlamaModelPtr llama_model{nullptr, nullptr};  // outlives the candidates
  std::vector<Candidate> candidates;
  std::vector<pid_t> processes;  // of the candidates, where they are not within this one
};

struct PeerOptions {
  std::string model;
  std::string directory;  // that tests/bench/fetch_peer fills
  std::string llama_kv;   // type of llama.cpp's KV cache, as ParseLlamaKvType takes it
  int threads = 1;
  int vocab_size = 0;
  int max_depth = 0;  // of a single sequence
};

// Names of engines separated by commas. INVALID_ARGUMENT names an unknown one.
absl::StatusOr<std::vector<std::string>> ParsePeerNames(absl::string_view names);

absl::StatusOr<Peer> LoadPeer(const std::string& name, const PeerOptions& options);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_PEER_H_
