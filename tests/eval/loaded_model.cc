#include "tests/eval/loaded_model.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/model/gguf.h"

namespace whit::eval {
absl::StatusOr<LoadedModel> LoadModel(const std::string& path, const std::string& policy_file,
                                      int num_threads) {
  const absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(path);
  if (!file.ok()) return file.status();  // names the file
  LoadedModel loaded;
  loaded.threads = std::make_unique<ThreadPool>(num_threads);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**file, *loaded.threads);
  if (!model.ok()) return Annotate(model.status(), path);
  loaded.model = *std::move(model);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(**file);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), path);
  loaded.tokenizer = *std::move(tokenizer);
  absl::StatusOr<std::optional<FoundPolicy>> policy =
      FindPolicy({.path = policy_file, .model_path = path, .directory = ShippedPolicyDirectory()},
                 IdentityOf(**file, loaded.model->config()));
  if (!policy.ok()) return policy.status();  // names the file
  if (policy->has_value()) {
    loaded.policy_file = std::make_unique<const FoundPolicy>(**std::move(policy));
    loaded.model->SetKeyMeans(loaded.policy_file->file.key_means);
  }
  return loaded;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  return content;
}

absl::Status Annotate(const absl::Status& status, const std::string& context) {
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace whit::eval
