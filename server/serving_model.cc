#include "server/serving_model.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "controller/policy_lookup.h"
#include "controller/precision_policy.h"
#include "kvpool/page_pool.h"
#include "runtime/engine/kv_reservation.h"
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

// The names of what `file` holds for policies.
std::string SectionsOf(const PolicyFile& file) {
  std::vector<std::string> sections;
  if (!file.key_means.empty()) sections.push_back("key_means");
  if (file.importance.has_value()) sections.push_back("importance");
  if (!file.prices.empty()) sections.push_back("prices");
  if (!file.sensitivities.empty()) sections.push_back("sensitivities");
  if (file.learned.has_value()) sections.push_back("learned");
  return absl::StrJoin(sections, ",");
}

bool KnowsImportance(const std::optional<FoundPolicy>& found) {
  return found.has_value() && found->file.importance.has_value();
}

// The policy that requests get by default, and why.
struct ChosenPolicy {
  PrecisionPolicySpec spec;
  const char* reason;
};

ChosenPolicy ChoosePolicy(const ServerOptions& options, const std::optional<FoundPolicy>& found) {
  if (options.kv_policy.has_value()) return {*options.kv_policy, "--kv-policy"};
  const PrecisionPolicySpec adaptive = {.kind = PrecisionPolicySpec::Kind::kAdaptive};
  if (options.engine.kv_target_bits > 0) return {adaptive, "--kv-target-bits"};
  if (KnowsImportance(found)) return {adaptive, "the policy file has this model's importance"};
  // 8 bits lose next to nothing; how far below them a model may go is not known before it has been
  // calibrated.
  return {{.kind = PrecisionPolicySpec::Kind::kStatic, .rung = Rung::kK8V8},
          "this model's importance is not known"};
}

void LogPolicy(const ServerOptions& options, const ChosenPolicy& policy,
               const std::optional<FoundPolicy>& found, const Logger& logger) {
  const bool quantizes = policy.spec != PrecisionPolicySpec();
  const bool adaptive = policy.spec.kind == PrecisionPolicySpec::Kind::kAdaptive;
  const bool generic = adaptive && !KnowsImportance(found);
  std::string event = found.has_value() ? "policy file" : "no policy file for this model";
  if (generic) absl::StrAppend(&event, ": adaptive goes by what is true of models in general");
  if (!found.has_value()) {
    absl::StrAppend(&event, generic ? ", and" : ":",
                    " what is quantized is quantized without means, at a larger error");
  }
  std::vector<LogField> fields = {{"policy", policy.spec.ToString()}, {"because", policy.reason}};
  if (found.has_value()) {
    fields.push_back({"path", found->path});
    fields.push_back({"fingerprint", absl::StrFormat("%016x", found->file.model.fingerprint)});
    fields.push_back({"sections", SectionsOf(found->file)});
  }
  const double target_bits = options.engine.kv_target_bits;
  if (target_bits > 0) fields.push_back({"target_bits", absl::StrFormat("%g", target_bits)});
  if (adaptive && (policy.spec.packed_bits > 0 || target_bits == 0)) {
    const double bits = policy.spec.packed_bits > 0 ? policy.spec.packed_bits : kDefaultPackedBits;
    fields.push_back({"packed_bits", absl::StrFormat("%g", bits)});
  }
  if (generic || !found.has_value()) {
    fields.push_back({"remedy", absl::StrCat("whit-calibrate --model=", options.model_path)});
  }
  const bool fine =
      !quantizes || options.kv_policy_file == kNoPolicyFile || (found.has_value() && !generic);
  logger.Log(fine ? LogLevel::kInfo : LogLevel::kWarn, event, fields);
}

int64_t TokensAtFloor(const EngineOptions& options, const ModelConfig& config) {
  return TokensThatFit(TermsOf(options.kv_policy, options.kv_floor, options.kv_ring), config,
                       PagePool::UsableBytes(options.kv_cache_bytes));
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
  absl::StatusOr<std::optional<FoundPolicy>> found = FindPolicy(
      {.path = options.kv_policy_file, .model_path = path, .directory = ShippedPolicyDirectory()},
      IdentityOf(**file, serving->config()));
  if (!found.ok()) return found.status();
  const ChosenPolicy policy = ChoosePolicy(options, *found);
  LogPolicy(options, policy, *found, logger);
  if (found->has_value()) {
    serving->policy_file_ = std::move((*found)->file);
    serving->model_->SetKeyMeans(serving->policy_file_->key_means);
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
  engine_options.kv_policy = policy.spec;
  if (serving->policy_file_) engine_options.policy_file = &*serving->policy_file_;
  engine_options.max_waiting_prompt_tokens =
      options.max_queue_prompt_tokens.value_or(TokensAtFloor(engine_options, serving->config()));
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
