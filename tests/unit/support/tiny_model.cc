#include "tests/unit/support/tiny_model.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace whit {
namespace {

constexpr std::string_view kSpecialTokens[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
constexpr int32_t kNormal = 1, kControl = 3;  // token types of the format

constexpr std::string_view kChatTemplate =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}";

// In order of priority; "_" stands for the space of a word's beginning.
constexpr std::pair<std::string_view, std::string_view> kMerges[] = {
    {"_", "t"},   {"_", "a"},    {"i", "n"},   {"h", "e"},    {"r", "e"},    {"o", "n"},
    {"e", "r"},   {"_t", "he"},  {"_", "s"},   {"a", "t"},    {"_", "w"},    {"_", "o"},
    {"e", "n"},   {"_", "c"},    {"i", "s"},   {"i", "t"},    {"e", "s"},    {"a", "n"},
    {"o", "r"},   {"_", "b"},    {"e", "d"},   {"_", "f"},    {"in", "g"},   {"_", "p"},
    {"o", "u"},   {"a", "l"},    {"a", "r"},   {"_t", "o"},   {"_", "m"},    {"_o", "f"},
    {"_", "in"},  {"_", "d"},    {"_", "h"},   {"_a", "n"},   {"_an", "d"},  {"i", "c"},
    {"a", "s"},   {"l", "e"},    {"_t", "h"},  {"i", "on"},   {"o", "m"},    {"l", "l"},
    {"en", "t"},  {"_", "n"},    {"_", "l"},   {"s", "t"},    {"_", "re"},   {"v", "e"},
    {"_", "e"},   {"r", "o"},    {"l", "y"},   {"_b", "e"},   {"_", "g"},    {"_w", "h"},
    {"he", "ll"}, {"hell", "o"}, {"_w", "or"}, {"_wor", "l"}, {"_worl", "d"}};

bool IsPrintable(int byte) { return byte >= 0x20 && byte < 0x7F; }

std::string Utf8(uint32_t code_point) {  // below U+0800
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// GPT-2's spelling of a byte: itself if it is a visible character of Latin-1, or else one of the
// characters from U+0100 on, in order.
std::vector<std::string> ByteSpellings() {
  std::vector<std::string> spellings;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    spellings.push_back(Utf8(visible ? byte : next++));
  }
  return spellings;
}

struct Vocabulary {
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;
  std::vector<float> loudness;  // relative size of a token's embedding
};

Vocabulary MakeVocabulary() {
  Vocabulary v;
  const auto add = [&v](std::string token, int32_t type, float loudness) {
    v.tokens.push_back(std::move(token));
    v.types.push_back(type);
    v.loudness.push_back(loudness);
  };
  for (std::string_view token : kSpecialTokens) add(std::string(token), kControl, 1.0f / 64);
  const std::vector<std::string> spellings = ByteSpellings();
  for (int byte = 0; byte < 256; ++byte) {
    add(spellings[byte], kNormal, IsPrintable(byte) ? 1.0f : 1.0f / 64);
  }
  const auto spell = [&spellings](std::string_view part) {
    return part.front() == '_' ? spellings[' '] + std::string(part.substr(1)) : std::string(part);
  };
  for (const auto& [left, right] : kMerges) {
    v.merges.push_back(spell(left) + " " + spell(right));
    add(spell(left) + spell(right), kNormal, 1.0f);
  }
  return v;
}

// IEEE binary16 of a positive normal or subnormal number.
uint16_t ToHalf(float x) {
  if (x < 0x1p-14f) return static_cast<uint16_t>(std::lround(x * 0x1p24f));
  const int exponent = std::ilogb(x);
  const long mantissa = std::lround((std::ldexp(x, -exponent) - 1) * 1024);  // 1024 carries over
  return static_cast<uint16_t>(((exponent + 15) << 10) + mantissa);
}

float Uniform(std::mt19937& rng, float low, float high) {
  return low + (high - low) * (static_cast<float>(rng() >> 8) * 0x1p-24f);
}

// A block of random bytes is valid in every quantized type but for its fp16 scales, which are set
// here. Scales are drawn from [1, 2) * unit.
struct HalfField {
  size_t offset;
  float unit;  // relative to the block's first scale
};
struct BlockRecipe {
  float rms;  // of an element, when the first scale's unit is 1
  std::vector<HalfField> fields;
};

BlockRecipe RecipeOf(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0:
      return {7, {{0, 1}}};
    case TensorType::kQ4_1:
      return {7.5f, {{0, 1}, {2, -8}}};
    case TensorType::kQ5_0:
      return {14, {{0, 1}}};
    case TensorType::kQ5_1:
      return {15, {{0, 1}, {2, -16}}};
    case TensorType::kQ8_0:
      return {113, {{0, 1}}};
    case TensorType::kQ4_K:
      return {415, {{0, 1}, {2, 8}}};
    case TensorType::kQ5_K:
      return {830, {{0, 1}, {2, 16}}};
    case TensorType::kQ6_K:
      return {2090, {{208, 1}}};
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      break;
  }
  return {};
}

template <typename T>
void Store(std::byte* p, T value) {
  std::memcpy(p, &value, sizeof(value));
}

void StoreFloat(TensorType type, float value, std::byte* p) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (type == TensorType::kF32) Store(p, value);
  if (type == TensorType::kBF16) Store(p, static_cast<uint16_t>(bits >> 16));
  if (type == TensorType::kF16) {
    Store(p, static_cast<uint16_t>(ToHalf(std::abs(value)) | (bits >> 31) << 15));
  }
}

// Around `scale`.
std::vector<std::byte> NormWeights(size_t size, float scale, std::mt19937& rng) {
  std::vector<std::byte> data(4 * size);
  for (size_t i = 0; i < size; ++i) Store(data.data() + 4 * i, scale * Uniform(rng, 0.5f, 1.5f));
  return data;
}

void SetMetadata(const TinyModelOptions& options, const Vocabulary& vocabulary, GgufWriter& file) {
  const auto count = [](int value) { return static_cast<uint32_t>(value); };
  file.Set("general.architecture", std::string("llama"));
  file.Set("general.type", std::string("model"));
  file.Set("general.name", std::string("Tiny"));
  file.Set("llama.block_count", count(options.num_layers));
  file.Set("llama.context_length", count(options.context_length));
  file.Set("llama.embedding_length", count(options.hidden_size));
  file.Set("llama.feed_forward_length", count(options.ffn_size));
  file.Set("llama.attention.head_count", count(options.num_heads));
  file.Set("llama.attention.head_count_kv", count(options.num_kv_heads));
  file.Set("llama.attention.key_length", count(options.head_dim));
  file.Set("llama.attention.value_length", count(options.head_dim));
  file.Set("llama.rope.freq_base", 10000.0f);
  file.Set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.Set("llama.vocab_size", static_cast<uint32_t>(vocabulary.tokens.size()));
  file.Set("llama.rope.dimension_count", count(options.head_dim));
  file.Set("tokenizer.ggml.add_space_prefix", false);
  file.Set("tokenizer.ggml.add_bos_token", options.add_bos);
  file.Set("tokenizer.ggml.model", std::string("gpt2"));
  file.Set("tokenizer.ggml.pre", options.pre_tokenizer);
  file.Set("tokenizer.ggml.tokens", GgufWriter::Array(vocabulary.tokens));
  file.Set("tokenizer.ggml.token_type", GgufWriter::Array(vocabulary.types));
  file.Set("tokenizer.ggml.merges", GgufWriter::Array(vocabulary.merges));
  file.Set("tokenizer.ggml.bos_token_id", uint32_t{1});
  file.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
  file.Set("tokenizer.ggml.unknown_token_id", uint32_t{0});
  file.Set("tokenizer.ggml.padding_token_id", uint32_t{2});
  file.Set("tokenizer.chat_template", std::string(kChatTemplate));
  file.Set("general.quantization_version", uint32_t{2});
}

}  // namespace

std::vector<std::byte> RandomRows(TensorType type, size_t cols, const std::vector<float>& rms,
                                  std::mt19937& rng) {
  const size_t blocks = cols / TensorBlockElements(type), block_bytes = TensorBlockBytes(type);
  const BlockRecipe recipe = RecipeOf(type);
  std::vector<std::byte> data(rms.size() * blocks * block_bytes);
  std::byte* block = data.data();
  for (float row_rms : rms) {
    for (size_t i = 0; i < blocks; ++i, block += block_bytes) {
      if (recipe.fields.empty()) {
        StoreFloat(type, row_rms * std::sqrt(3.0f) * Uniform(rng, -1, 1), block);
        continue;
      }
      for (size_t j = 0; j < block_bytes; ++j) block[j] = static_cast<std::byte>(rng());
      for (const HalfField& field : recipe.fields) {
        const float scale = row_rms / recipe.rms * std::abs(field.unit) * Uniform(rng, 1, 2);
        Store(block + field.offset,
              static_cast<uint16_t>(ToHalf(scale) | (field.unit < 0 ? 0x8000 : 0)));
      }
    }
  }
  return data;
}

GgufWriter MakeTinyModel(const TinyModelOptions& options) {
  // A token's embedding is small beside what the layers add to it, or tied embeddings would make it
  // repeat itself. The last norm makes up for it in the logits.
  constexpr float kEmbeddingRms = 0.05f, kOutputScale = 8;
  GgufWriter file;
  std::mt19937 rng(options.seed);
  const Vocabulary vocabulary = MakeVocabulary();
  SetMetadata(options, vocabulary, file);

  const auto matrix = [&](const std::string& name, TensorType type, size_t cols,
                          const std::vector<float>& rms) {
    file.tensors.push_back({.name = name + ".weight",
                            .type = type,
                            .dimensions = {cols, rms.size()},
                            .data = RandomRows(type, cols, rms, rng)});
  };
  const auto layer_matrix = [&](const std::string& name, int cols, int rows) {
    // Keeps the size of what is multiplied, so every layer has its say.
    matrix(name, options.matrix_type, cols,
           std::vector<float>(rows, 1.0f / std::sqrt(static_cast<float>(cols))));
  };
  const auto norm = [&](const std::string& name, float scale) {
    const auto size = static_cast<size_t>(options.hidden_size);
    file.tensors.push_back(
        {.name = name + ".weight", .dimensions = {size}, .data = NormWeights(size, scale, rng)});
  };
  std::vector<float> embedding_rms;
  for (float loudness : vocabulary.loudness) embedding_rms.push_back(kEmbeddingRms * loudness);

  const int hidden = options.hidden_size, query = options.num_heads * options.head_dim,
            kv = options.num_kv_heads * options.head_dim;
  matrix("token_embd", options.embedding_type, hidden, embedding_rms);
  for (int i = 0; i < options.num_layers; ++i) {
    const std::string prefix = absl::StrCat("blk.", i, ".");
    norm(prefix + "attn_norm", 1);
    layer_matrix(prefix + "ffn_down", options.ffn_size, hidden);
    layer_matrix(prefix + "ffn_gate", hidden, options.ffn_size);
    layer_matrix(prefix + "ffn_up", hidden, options.ffn_size);
    norm(prefix + "ffn_norm", 1);
    layer_matrix(prefix + "attn_k", hidden, kv);
    layer_matrix(prefix + "attn_output", query, hidden);
    layer_matrix(prefix + "attn_q", hidden, query);
    layer_matrix(prefix + "attn_v", hidden, kv);
  }
  norm("output_norm", kOutputScale);
  if (!options.tied_embeddings) matrix("output", options.embedding_type, hidden, embedding_rms);
  return file;
}

}  // namespace whit
