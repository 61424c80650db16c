#include "tests/eval/loaded_model.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/model/gguf.h"

namespace whit::eval {
namespace {

absl::StatusOr<std::vector<float>> ReadKeyMeans(const std::string& path,
                                                const ModelConfig& config) {
  const absl::StatusOr<std::string> bytes = ReadFile(path);
  if (!bytes.ok()) return bytes.status();
  std::vector<float> means(size_t{1} * config.num_layers * config.kv_size());
  if (bytes->size() != means.size() * sizeof(float)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes->size(), " bytes; the means of ", config.num_layers,
                     " layers x ", config.num_kv_heads, " KV heads x ", config.head_dim,
                     " dimensions are ", means.size() * sizeof(float)));
  }
  std::memcpy(means.data(), bytes->data(), bytes->size());
  const auto bad =
      std::find_if_not(means.begin(), means.end(), [](float m) { return std::isfinite(m); });
  if (bad != means.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": mean ", bad - means.begin(), " is not a finite number"));
  }
  return means;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const std::string& path, const std::string& key_means,
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
  if (!key_means.empty()) {
    absl::StatusOr<std::vector<float>> means = ReadKeyMeans(key_means, loaded.model->config());
    if (!means.ok()) return means.status();
    loaded.model->SetKeyMeans(*std::move(means));
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
