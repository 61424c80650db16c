#include "tests/bench/llama_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace whit {
namespace {

// The core library's path, such as libllama.v0.5.0.so; empty if there is none.
std::filesystem::path FindLibrary(const std::string& directory) {
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    if (absl::StartsWith(name, "libllama.") && absl::StrContains(name, ".so")) return it->path();
  }
  return {};
}

template <typename Fn>
absl::Status Resolve(void* handle, const char* symbol, Fn& fn) {
  fn = reinterpret_cast<Fn>(dlsym(handle, symbol));
  if (fn != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the peer's library has no symbol ", symbol, "; see tests/bench/fetch_peer"));
}

// Whether the structure's layout is the one declared: defaults stand where they should.
bool HasExpectedLayout(const LlamaContextParams& p) {
  return p.n_ctx == 512 && p.n_batch == 2048 && p.n_ubatch == 512 && p.n_seq_max == 1 &&
         p.n_threads > 0 && p.n_threads == p.n_threads_batch && p.flash_attn_type == -1 &&
         p.type_k == 1 && p.type_v == 1 && !p.embeddings && p.no_perf && !p.kv_unified;
}

void DropLog(int /*level*/, const char* /*text*/, void* /*user_data*/) {}

}  // namespace

absl::StatusOr<std::unique_ptr<LlamaLibrary>> LlamaLibrary::Load(const std::string& directory) {
  const std::filesystem::path path = FindLibrary(directory);
  if (path.empty()) {
    return absl::NotFoundError(
        absl::StrCat("no libllama below '", directory, "'; tests/bench/fetch_peer gets it"));
  }
  // Never unloaded: its own static objects would not survive that.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot load the peer: ", dlerror()));
  }
  auto library = std::make_unique<LlamaLibrary>();
  void (*log_set)(void (*)(int, const char*, void*), void*) = nullptr;
  void (*backend_load_all_from_path)(const char*) = nullptr;
  void (*backend_init)() = nullptr;
  for (const absl::Status& status : {
           Resolve(handle, "llama_log_set", log_set),
           Resolve(handle, "ggml_backend_load_all_from_path", backend_load_all_from_path),
           Resolve(handle, "llama_backend_init", backend_init),
           Resolve(handle, "llama_model_default_params", library->model_default_params),
           Resolve(handle, "llama_model_load_from_file", library->model_load_from_file),
           Resolve(handle, "llama_model_free", library->model_free),
           Resolve(handle, "llama_context_default_params", library->context_default_params),
           Resolve(handle, "llama_init_from_model", library->init_from_model),
           Resolve(handle, "llama_free", library->free),
           Resolve(handle, "llama_get_memory", library->get_memory),
           Resolve(handle, "llama_memory_clear", library->memory_clear),
           Resolve(handle, "llama_memory_seq_rm", library->memory_seq_rm),
           Resolve(handle, "llama_memory_seq_cp", library->memory_seq_cp),
           Resolve(handle, "llama_decode", library->decode),
           Resolve(handle, "llama_synchronize", library->synchronize),
       }) {
    if (!status.ok()) return status;
  }
  if (!HasExpectedLayout(library->context_default_params())) {
    return absl::FailedPreconditionError(
        absl::StrCat(path.string(), " is not of the version that whit-bench knows; ",
                     "tests/bench/fetch_peer gets that"));
  }
  log_set(DropLog, nullptr);
  backend_load_all_from_path(path.parent_path().c_str());
  backend_init();
  return library;
}

absl::StatusOr<int32_t> ParseLlamaKvType(const std::string& name) {
  if (name == "f16") return 1;
  if (name == "q8_0") return 8;
  if (name == "q4_0") return 2;
  return absl::InvalidArgumentError(
      absl::StrCat("KV type '", name, "' is none of f16, q8_0, q4_0"));
}

}  // namespace whit
