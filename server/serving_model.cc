#include "server/serving_model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/policy_lookup.h"
#include "controller/precision_policy.h"
#include "runtime/model/gguf.h"
#include "server/available_memory.h"
#include "server/flag_values.h"

namespace whit {
namespace {

constexpr uint64_t kMaxDefaultKvCacheBytes = uint64_t{4} << 30;

// Half of what is left, so that requests, tokenizing and the rest of the machine keep the other
// half.
absl::StatusOr<uint64_t> DefaultKvCacheBytes() {
  const uint64_t available = AvailableMemoryBytes();
  if (available == 0) {
    return absl::FailedPreconditionError(
        "cannot find out how much memory is available; give --kv-cache-bytes");
  }
  return std::min(available / 2, kMaxDefaultKvCacheBytes);
}

absl::Status Annotated(const absl::Status& status, const std::string& what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

// Gives the model what its policy file holds, if there is one.
absl::Status ApplyPolicyFile(const ServerOptions& options, const GgufFile& file, Model& model,
                             const Logger& logger) {
  absl::StatusOr<std::optional<FoundPolicy>> found =
      FindPolicy({.path = options.kv_policy_file,
                  .model_path = options.model_path,
                  .directory = ShippedPolicyDirectory()},
                 IdentityOf(file, model.config()));
  if (!found.ok()) return found.status();
  if (!found->has_value()) {
    const bool quantizes = options.engine.kv_policy != PrecisionPolicySpec();
    logger.Log(quantizes ? LogLevel::kWarn : LogLevel::kInfo,
               "no policy file for this model: what is quantized is quantized without means, at a "
               "larger error",
               {{"remedy", absl::StrCat("whit-calibrate --model=", options.model_path)}});
    return absl::OkStatus();
  }
  logger.Info("policy file", {{"path", (*found)->path}});
  model.SetKeyMeans(std::move((*found)->file.key_means));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServingModel>> ServingModel::Load(const ServerOptions& options,
                                                                 EngineObserver observer,
                                                                 const Logger& logger) {
  const std::string& path = options.model_path;
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(path);
  if (!file.ok()) return file.status();
  auto serving = std::unique_ptr<ServingModel>(new ServingModel());
  serving->file_bytes_ = (*file)->file_bytes();
  serving->threads_ = std::make_unique<ThreadPool>(options.threads);

  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**file, *serving->threads_);
  if (!model.ok()) return Annotated(model.status(), path);
  serving->model_ = *std::move(model);
  if (absl::Status s = ApplyPolicyFile(options, **file, *serving->model_, logger); !s.ok()) {
    return s;
  }

  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(**file);
  if (!tokenizer.ok()) return Annotated(tokenizer.status(), path);
  serving->tokenizer_ = *std::move(tokenizer);
  for (int32_t id = 0; id < serving->tokenizer_->vocab_size(); ++id) {
    serving->max_token_bytes_ =
        std::max(serving->max_token_bytes_, serving->tokenizer_->TokenBytes(id).size());
  }
  serving->chat_format_ = ChatFormat::Recognise(*serving->tokenizer_);
  if (!serving->chat_format_.ok()) {
    logger.Warn("chat prompts will fail",
                {{"error", std::string(serving->chat_format_.status().message())}});
  }

  absl::StatusOr<uint64_t> kv_cache_bytes = options.kv_cache_bytes
                                                ? absl::StatusOr<uint64_t>(*options.kv_cache_bytes)
                                                : DefaultKvCacheBytes();
  if (!kv_cache_bytes.ok()) return kv_cache_bytes.status();
  EngineOptions engine_options = options.engine;
  engine_options.kv_cache_bytes = *kv_cache_bytes;
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Create(engine_options, *serving->model_, *serving->tokenizer_, std::move(observer));
  if (!engine.ok()) {
    return Annotated(engine.status(),
                     absl::StrCat("a KV cache of ", FormatByteSize(*kv_cache_bytes)));
  }
  serving->engine_ = *std::move(engine);
  return serving;
}

}  // namespace whit
