#include "server/vllm/tokenizer_archive.h"

#include <openssl/sha.h>

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/escaping.h"
#include "runtime/text/tokenizer_json.h"
#include "server/vllm/stored_zip.h"

namespace whit {
namespace {

using nlohmann::json;

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string TokenizerConfig(const ModelConfig& config, const Tokenizer& tokenizer) {
  json value = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                {"model_max_length", config.context_length},
                {"add_bos_token", tokenizer.add_bos()},
                {"add_prefix_space", false},
                {"clean_up_tokenization_spaces", false}};
  const auto add_token = [&](const char* name, int32_t id) {
    if (id >= 0) value[name] = tokenizer.TokenBytes(id);
  };
  add_token("bos_token", tokenizer.bos_id());
  add_token("eos_token", tokenizer.eos_id());
  if (!tokenizer.chat_template().empty()) value["chat_template"] = tokenizer.chat_template();
  return Dump(value);
}

std::string Config(const ModelConfig& config, const Tokenizer& tokenizer) {
  json value = {{"architectures", json::array({"LlamaForCausalLM"})},
                {"model_type", config.architecture},
                {"vocab_size", config.vocab_size},
                {"hidden_size", config.hidden_size},
                {"intermediate_size", config.ffn_size},
                {"num_hidden_layers", config.num_layers},
                {"num_attention_heads", config.num_heads},
                {"num_key_value_heads", config.num_kv_heads},
                {"head_dim", config.head_dim},
                {"max_position_embeddings", config.context_length},
                {"tie_word_embeddings", config.tied_embeddings},
                {"eos_token_id", json(tokenizer.end_of_generation_ids())}};
  if (tokenizer.bos_id() >= 0) value["bos_token_id"] = tokenizer.bos_id();
  return Dump(value);
}

std::string Sha256(std::string_view bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

}  // namespace

TokenizerArchive MakeTokenizerArchive(const ModelConfig& config, const Tokenizer& tokenizer) {
  const std::string tokenizer_json = ToTokenizerJson(tokenizer);
  const std::string tokenizer_config = TokenizerConfig(config, tokenizer);
  const std::string model_config = Config(config, tokenizer);
  TokenizerArchive archive;
  archive.zip = MakeStoredZip({{"config.json", model_config},
                               {"tokenizer.json", tokenizer_json},
                               {"tokenizer_config.json", tokenizer_config}});
  archive.sha256 = Sha256(archive.zip);
  return archive;
}

}  // namespace whit
