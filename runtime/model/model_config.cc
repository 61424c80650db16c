#include "runtime/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/model/dequantize.h"

namespace whit {
namespace {

// Far beyond any model of the architecture; they keep products of sizes within int, and positions
// exact in float.
constexpr int kMaxContextLength = 1 << 24;
constexpr int kMaxVocabSize = 1 << 20;
constexpr int kMaxHiddenSize = 1 << 16;
constexpr int kMaxFfnSize = 1 << 18;
constexpr int kMaxLayers = 1 << 10;
constexpr int kMaxHeads = 1 << 10;
constexpr int kMaxHeadDim = 1 << 9;
constexpr double kMaxRopeFactor = 1e6;  // by which a frequency is divided or multiplied
constexpr int kHeadDimMultiple = 16;    // what pages and kernels need

// Text from the file, fit for messages and logs: printable ASCII.
std::string Printable(std::string_view text) {
  constexpr size_t kMaxShown = 128;
  return absl::CHexEscape(absl::string_view(text.data(), std::min(text.size(), kMaxShown)));
}

// Keys of the llama architecture, without their prefix.
class Keys {
 public:
  explicit Keys(const GgufFile& file) : file_(file) {}

  bool Has(absl::string_view key) const { return file_.Has(absl::StrCat("llama.", key)); }

  absl::Status ReadInt(absl::string_view key, int low, int high, int& out) const {
    const std::string name = absl::StrCat("llama.", key);
    const absl::StatusOr<uint64_t> value = file_.GetUint(name);
    if (!value.ok()) return AsInvalid(value.status());
    if (*value < static_cast<uint64_t>(low) || *value > static_cast<uint64_t>(high)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", *value, "; it must be ", low, " to ", high));
    }
    out = static_cast<int>(*value);
    return absl::OkStatus();
  }

  // The open interval (low, high).
  absl::Status ReadFloat(absl::string_view key, double low, double high, double& out) const {
    const std::string name = absl::StrCat("llama.", key);
    const absl::StatusOr<double> value = file_.GetFloat(name);
    if (!value.ok()) return AsInvalid(value.status());
    if (!(*value > low && *value < high)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is ", *value, "; it must lie between ", low, " and ", high));
    }
    out = *value;
    return absl::OkStatus();
  }

  // `out` keeps its value if the key is absent.
  absl::Status ReadOptionalInt(absl::string_view key, int low, int high, int& out) const {
    return Has(key) ? ReadInt(key, low, high, out) : absl::OkStatus();
  }
  absl::Status ReadOptionalFloat(absl::string_view key, double low, double high,
                                 double& out) const {
    return Has(key) ? ReadFloat(key, low, high, out) : absl::OkStatus();
  }

 private:
  // For a model every missing key is a fault of the file.
  static absl::Status AsInvalid(const absl::Status& status) {
    return absl::InvalidArgumentError(status.message());
  }

  const GgufFile& file_;
};

absl::Status CheckArchitecture(const GgufFile& file) {
  const absl::StatusOr<std::string_view> architecture = file.GetString("general.architecture");
  if (!architecture.ok()) return absl::InvalidArgumentError(architecture.status().message());
  if (*architecture != "llama") {
    return absl::UnimplementedError(
        absl::StrCat("architecture '", Printable(*architecture), "' is not supported; 'llama' is"));
  }
  return absl::OkStatus();
}

// Features that other models of the architecture's name have, and that would be ignored in silence.
absl::Status RefuseUnsupportedFeatures(const GgufFile& file) {
  // The value with which each feature is off.
  constexpr std::pair<const char*, uint64_t> kIntegers[] = {{"llama.expert_count", 0},
                                                            {"llama.expert_used_count", 0},
                                                            {"llama.attention.sliding_window", 0}};
  constexpr std::pair<const char*, double> kFloats[] = {
      {"llama.attention.clamp_kqv", 0},     {"llama.attention.max_alibi_bias", 0},
      {"llama.attention.scale", 0},         {"llama.attn_logit_softcapping", 0},
      {"llama.final_logit_softcapping", 0}, {"llama.rope.scaling.attn_factor", 1}};
  constexpr std::pair<const char*, bool> kBools[] = {{"llama.attention.causal", true},
                                                     {"llama.use_parallel_residual", false}};
  const auto check = [](const char* key, auto value, auto off) {
    if (!value.ok()) return absl::InvalidArgumentError(value.status().message());
    if (*value == off) return absl::OkStatus();
    return absl::UnimplementedError(
        absl::StrCat(key, " is ", *value, "; only ", off, " is supported"));
  };
  absl::Status status;
  for (const auto& [key, off] : kIntegers) {
    if (file.Has(key)) status.Update(check(key, file.GetUint(key), off));
  }
  for (const auto& [key, off] : kFloats) {
    if (file.Has(key)) status.Update(check(key, file.GetFloat(key), off));
  }
  for (const auto& [key, off] : kBools) {
    if (file.Has(key)) status.Update(check(key, file.GetBool(key), off));
  }
  return status;
}

absl::Status ReadSizes(const Keys& keys, ModelConfig& config) {
  absl::Status status;
  status.Update(keys.ReadInt("context_length", 1, kMaxContextLength, config.context_length));
  status.Update(keys.ReadInt("embedding_length", 1, kMaxHiddenSize, config.hidden_size));
  status.Update(keys.ReadInt("feed_forward_length", 1, kMaxFfnSize, config.ffn_size));
  status.Update(keys.ReadInt("block_count", 1, kMaxLayers, config.num_layers));
  status.Update(keys.ReadInt("attention.head_count", 1, kMaxHeads, config.num_heads));
  config.num_kv_heads = config.num_heads;
  status.Update(keys.ReadOptionalInt("attention.head_count_kv", 1, kMaxHeads, config.num_kv_heads));
  double epsilon = 0;
  status.Update(keys.ReadFloat("attention.layer_norm_rms_epsilon", 0, 1, epsilon));
  config.rms_norm_epsilon = static_cast<float>(epsilon);
  if (!status.ok()) return status;
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "llama.attention.head_count is ", config.num_heads,
        ", not a multiple of llama.attention.head_count_kv, which is ", config.num_kv_heads));
  }
  return absl::OkStatus();
}

absl::Status ReadHeadDim(const Keys& keys, ModelConfig& config) {
  const bool given = keys.Has("attention.key_length");
  if (!given && config.hidden_size % config.num_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("llama.embedding_length is ", config.hidden_size,
                     ", not a multiple of llama.attention.head_count, which is ", config.num_heads,
                     ", and llama.attention.key_length is missing"));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  int value_length = config.head_dim;
  absl::Status status;
  status.Update(keys.ReadOptionalInt("attention.key_length", 1, kMaxHeadDim, config.head_dim));
  status.Update(keys.ReadOptionalInt("attention.value_length", 1, kMaxHeadDim, value_length));
  if (!status.ok()) return status;
  if (config.head_dim % kHeadDimMultiple != 0 || config.head_dim > kMaxHeadDim) {
    return absl::UnimplementedError(absl::StrCat("the head dimension is ", config.head_dim,
                                                 "; only multiples of ", kHeadDimMultiple,
                                                 " up to ", kMaxHeadDim, " are supported"));
  }
  if (value_length != config.head_dim) {
    return absl::UnimplementedError(absl::StrCat("keys have ", config.head_dim,
                                                 " dimensions and values ", value_length,
                                                 "; only equal ones are supported"));
  }
  return absl::OkStatus();
}

// The factor by which linear scaling divides every frequency.
absl::StatusOr<double> ReadLinearRopeFactor(const GgufFile& file, const Keys& keys) {
  std::string_view type = "linear";  // what a bare factor means
  if (keys.Has("rope.scaling.type")) {
    const absl::StatusOr<std::string_view> given = file.GetString("llama.rope.scaling.type");
    if (!given.ok()) return absl::InvalidArgumentError(given.status().message());
    type = *given;
  }
  if (type == "none") return 1;
  if (type == "llama3") {
    // Its factors depend on the frequency and come as a tensor, not as keys.
    if (file.FindTensor("rope_freqs.weight") != nullptr) return 1;
    return absl::InvalidArgumentError(
        "llama.rope.scaling.type is 'llama3', but tensor 'rope_freqs.weight' is missing");
  }
  if (type != "linear") {
    return absl::UnimplementedError(
        absl::StrCat("llama.rope.scaling.type '", Printable(type),
                     "' is not supported; 'none', 'linear' and 'llama3' are"));
  }
  double factor = 1;
  const char* key = keys.Has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  if (absl::Status s = keys.ReadOptionalFloat(key, 1 / kMaxRopeFactor, kMaxRopeFactor, factor);
      !s.ok())
    return s;
  return factor;
}

// One divisor for each frequency; all 1 if the file has none.
absl::StatusOr<std::vector<float>> ReadRopeDivisors(const GgufFile& file, int count) {
  std::vector<float> divisors(count, 1.0f);
  const GgufTensor* tensor = file.FindTensor("rope_freqs.weight");
  if (tensor == nullptr) return divisors;
  if (tensor->cols != divisors.size() || tensor->rows != 1) {
    return absl::InvalidArgumentError(absl::StrCat("tensor 'rope_freqs.weight' has ", tensor->rows,
                                                   " rows of ", tensor->cols,
                                                   " elements; 1 row of ", count, " is needed"));
  }
  DequantizeRow(tensor->type, tensor->data, tensor->cols, divisors.data());
  for (int i = 0; i < count; ++i) {
    if (!(divisors[i] > 1 / kMaxRopeFactor && divisors[i] < kMaxRopeFactor)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor 'rope_freqs.weight' has element ", i,
                                                     " = ", divisors[i], "; it must lie between ",
                                                     1 / kMaxRopeFactor, " and ", kMaxRopeFactor));
    }
  }
  return divisors;
}

absl::Status ReadRope(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  config.rope_dims = config.head_dim;
  double base = 10000;
  absl::Status status;
  status.Update(keys.ReadOptionalInt("rope.dimension_count", 2, config.head_dim, config.rope_dims));
  status.Update(keys.ReadOptionalFloat("rope.freq_base", 1, kMaxRopeFactor * kMaxRopeFactor, base));
  if (!status.ok()) return status;
  if (config.rope_dims % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("llama.rope.dimension_count is ", config.rope_dims, "; it must be even"));
  }
  const absl::StatusOr<double> factor = ReadLinearRopeFactor(file, keys);
  if (!factor.ok()) return factor.status();
  const int count = config.rope_dims / 2;
  const absl::StatusOr<std::vector<float>> divisors = ReadRopeDivisors(file, count);
  if (!divisors.ok()) return divisors.status();
  for (int i = 0; i < count; ++i) {
    config.rope_inverse_frequencies.push_back(
        static_cast<float>(std::pow(base, -2.0 * i / config.rope_dims) / *factor / (*divisors)[i]));
  }
  return absl::OkStatus();
}

// The embedding decides the vocabulary's size; the keys that repeat it must agree, or a token's id
// could lie outside of the table.
absl::Status ReadVocabSize(const GgufFile& file, ModelConfig& config) {
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr) {
    return absl::InvalidArgumentError("tensor 'token_embd.weight' is missing");
  }
  if (embedding->rows > kMaxVocabSize) {
    return absl::InvalidArgumentError(absl::StrCat("tensor 'token_embd.weight' has ",
                                                   embedding->rows, " rows; at most ",
                                                   kMaxVocabSize, " tokens are possible"));
  }
  config.vocab_size = static_cast<int>(embedding->rows);
  const auto check = [&](const char* key, uint64_t size) {
    if (size == embedding->rows) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(key, " says ", size,
                                                   " tokens, but tensor 'token_embd.weight' has ",
                                                   embedding->rows, " rows"));
  };
  if (file.Has("llama.vocab_size")) {
    const absl::StatusOr<uint64_t> size = file.GetUint("llama.vocab_size");
    if (!size.ok()) return size.status();
    if (absl::Status s = check("llama.vocab_size", *size); !s.ok()) return s;
  }
  if (file.Has("tokenizer.ggml.tokens")) {
    const auto tokens = file.GetStringArray("tokenizer.ggml.tokens");
    if (!tokens.ok()) return tokens.status();
    return check("tokenizer.ggml.tokens", tokens->size());
  }
  return absl::OkStatus();
}

// Every tensor that the forward pass uses is there in its shape, and there is no other.
class TensorCheck {
 public:
  explicit TensorCheck(const GgufFile& file) : file_(file) {}

  void Expect(const std::string& name, int cols, int rows) {
    const GgufTensor* tensor = file_.FindTensor(name);
    if (tensor == nullptr) {
      status_.Update(absl::InvalidArgumentError(absl::StrCat("tensor '", name, "' is missing")));
      return;
    }
    if (tensor->cols != static_cast<size_t>(cols) || tensor->rows != static_cast<size_t>(rows)) {
      status_.Update(absl::InvalidArgumentError(
          absl::StrCat("tensor '", name, "' has ", tensor->rows, " rows of ", tensor->cols,
                       " elements; the metadata asks for ", rows, " of ", cols)));
    }
    expected_.insert(tensor->name);
  }

  absl::Status Finish() && {
    for (const GgufTensor& tensor : file_.tensors()) {
      if (expected_.contains(tensor.name)) continue;
      status_.Update(absl::UnimplementedError(
          absl::StrCat("tensor '", Printable(tensor.name),
                       "' belongs to no feature of the llama architecture that is supported")));
    }
    return std::move(status_);
  }

 private:
  const GgufFile& file_;
  absl::Status status_;  // the first error
  absl::flat_hash_set<std::string_view> expected_;
};

absl::Status CheckTensors(const GgufFile& file, ModelConfig& config) {
  const int hidden = config.hidden_size, ffn = config.ffn_size, query = config.query_size(),
            kv = config.kv_size();
  TensorCheck check(file);
  check.Expect("token_embd.weight", hidden, config.vocab_size);
  check.Expect("output_norm.weight", hidden, 1);
  config.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  if (!config.tied_embeddings) check.Expect("output.weight", hidden, config.vocab_size);
  if (file.FindTensor("rope_freqs.weight") != nullptr) {
    check.Expect("rope_freqs.weight", config.rope_dims / 2, 1);
  }
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat("blk.", i, ".");
    check.Expect(prefix + "attn_norm.weight", hidden, 1);
    check.Expect(prefix + "attn_q.weight", hidden, query);
    check.Expect(prefix + "attn_k.weight", hidden, kv);
    check.Expect(prefix + "attn_v.weight", hidden, kv);
    check.Expect(prefix + "attn_output.weight", query, hidden);
    check.Expect(prefix + "ffn_norm.weight", hidden, 1);
    check.Expect(prefix + "ffn_gate.weight", hidden, ffn);
    check.Expect(prefix + "ffn_up.weight", hidden, ffn);
    check.Expect(prefix + "ffn_down.weight", ffn, hidden);
  }
  return std::move(check).Finish();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file) {
  const Keys keys(file);
  ModelConfig config;
  config.architecture = "llama";
  if (const auto name = file.GetString("general.name"); name.ok()) config.name = Printable(*name);
  if (absl::Status s = CheckArchitecture(file); !s.ok()) return s;
  if (absl::Status s = RefuseUnsupportedFeatures(file); !s.ok()) return s;
  if (absl::Status s = ReadSizes(keys, config); !s.ok()) return s;
  if (absl::Status s = ReadHeadDim(keys, config); !s.ok()) return s;
  if (absl::Status s = ReadRope(file, keys, config); !s.ok()) return s;
  if (absl::Status s = ReadVocabSize(file, config); !s.ok()) return s;
  if (absl::Status s = CheckTensors(file, config); !s.ok()) return s;
  for (const GgufTensor& tensor : file.tensors()) {
    config.num_parameters += uint64_t{tensor.rows} * tensor.cols;
  }
  return config;
}

ModelIdentity IdentityOf(const GgufFile& file, const ModelConfig& config) {
  return {.fingerprint = file.fingerprint(),
          .num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim};
}

}  // namespace whit
