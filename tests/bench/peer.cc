#include "tests/bench/peer.h"

#include <unistd.h>

#include <utility>

#include "absl/algorithm/container.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "tests/bench/process_runner.h"

namespace whit {
namespace {

absl::StatusOr<Peer> LoadLlama(const PeerOptions& options) {
  Peer peer;
  absl::StatusOr<std::unique_ptr<LlamaLibrary>> library = LlamaLibrary::Load(options.directory);
  if (!library.ok()) return library.status();
  absl::StatusOr<int32_t> kv_type = ParseLlamaKvType(options.llama_kv);
  if (!kv_type.ok()) return kv_type.status();
  peer.llama_library = *std::move(library);
  absl::StatusOr<LlamaModelPtr> model = LoadLlamaModel(*peer.llama_library, options.model);
  if (!model.ok()) return model.status();
  peer.llama_model = *std::move(model);
  for (bool flash_attention : {true, false}) {
    if (!flash_attention && options.llama_kv != "f16") continue;  // it quantizes V only with it
    peer.candidates.push_back({.settings = flash_attention ? "flash" : "no flash",
                               .runner = std::make_unique<LlamaRunner>(
                                   *peer.llama_library, *peer.llama_model,
                                   LlamaRunner::Options{.threads = options.threads,
                                                        .vocab_size = options.vocab_size,
                                                        .max_depth = options.max_depth,
                                                        .kv_type = *kv_type,
                                                        .flash_attention = flash_attention})});
  }
  peer.name = absl::StrCat("llama.cpp, KV ", options.llama_kv);
  return peer;
}

// An engine in Python, one process for each of `settings`, which its module in tests/bench/peer
// describes.
absl::StatusOr<Peer> LoadPython(const std::string& engine, const std::vector<std::string>& settings,
                                const PeerOptions& options) {
  const std::string directory = absl::StrCat(options.directory, "/", engine);
  const std::string python = absl::StrCat(directory, "/bin/python");
  if (access(python.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("no ", python, "; `tests/bench/fetch_peer ", engine, "` makes it"));
  }
  Peer peer;
  for (const std::string& each : settings) {
    absl::StatusOr<std::unique_ptr<ProcessRunner>> runner = ProcessRunner::Start(
        {python, WHIT_PEER_ENGINE, engine, "--model", options.model, "--settings", each,
         "--threads", absl::StrCat(options.threads), "--vocab-size",
         absl::StrCat(options.vocab_size), "--cache", directory + "/cache"});
    if (!runner.ok()) {
      return absl::Status(runner.status().code(),
                          absl::StrCat(engine, ", ", each, ": ", runner.status().message()));
    }
    peer.name = (*runner)->name();
    peer.processes.push_back((*runner)->pid());
    peer.candidates.push_back({.settings = each, .runner = *std::move(runner)});
  }
  return peer;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParsePeerNames(absl::string_view names) {
  const std::vector<std::string> known = {kLlamaCpp, kOpenVino, kVllm};
  const std::vector<std::string> parsed = absl::StrSplit(names, ',');
  for (const std::string& name : parsed) {
    if (!absl::c_linear_search(known, name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown peer '", name, "'; there are ", absl::StrJoin(known, ", ")));
    }
  }
  return parsed;
}

absl::StatusOr<Peer> LoadPeer(const std::string& name, const PeerOptions& options) {
  if (name == kOpenVino) {
    return LoadPython(name, {"bf16 KV-u8", "f32 KV-u8", "f32 KV-f16"}, options);
  }
  if (name == kVllm) return LoadPython(name, {"bf16", "AWQ"}, options);
  return LoadLlama(options);
}

}  // namespace whit
