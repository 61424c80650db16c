// whit_make_tiny_model: writes a tiny random model for tests that run the server as a process.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>

#include "tests/unit/support/tiny_model.h"

int main(int argc, char** argv) {
  using whit::TensorType;
  const std::map<std::string, TensorType> types = {
      {"F32", TensorType::kF32},   {"F16", TensorType::kF16},   {"BF16", TensorType::kBF16},
      {"Q4_0", TensorType::kQ4_0}, {"Q4_1", TensorType::kQ4_1}, {"Q5_0", TensorType::kQ5_0},
      {"Q5_1", TensorType::kQ5_1}, {"Q8_0", TensorType::kQ8_0}, {"Q4_K", TensorType::kQ4_K},
      {"Q5_K", TensorType::kQ5_K}, {"Q6_K", TensorType::kQ6_K}};
  std::string path;
  whit::TinyModelOptions options;
  bool untied = false;

  CLI::App app("Writes a tiny llama model with random weights and a byte-level BPE tokenizer.");
  app.add_option("OUT", path, "The GGUF file to write")->required();
  app.add_option("--context", options.context_length, "Context length")->capture_default_str();
  app.add_option("--hidden", options.hidden_size, "Hidden size")->capture_default_str();
  app.add_option("--ffn", options.ffn_size, "Feed-forward size")->capture_default_str();
  app.add_option("--layers", options.num_layers, "Layers")->capture_default_str();
  app.add_option("--heads", options.num_heads, "Query heads")->capture_default_str();
  app.add_option("--kv-heads", options.num_kv_heads, "KV heads")->capture_default_str();
  app.add_option("--head-dim", options.head_dim, "Head dimension")->capture_default_str();
  app.add_option("--type", options.matrix_type, "Type of the layers' matrices")
      ->transform(CLI::CheckedTransformer(types));
  app.add_option("--embedding-type", options.embedding_type, "Type of the embeddings")
      ->transform(CLI::CheckedTransformer(types));
  app.add_flag("--untied", untied, "Write an output matrix of its own");
  app.add_option("--pre", options.pre_tokenizer, "Pre-tokenizer")->capture_default_str();
  app.add_flag("--add-bos", options.add_bos, "Ask for a begin-of-text token");
  app.add_option("--seed", options.seed, "Seed of the weights")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  options.tied_embeddings = !untied;

  const std::vector<std::byte> file = whit::MakeTinyModel(options).Build();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  out.close();
  if (!out) {
    std::fprintf(stderr, "%s: cannot write\n", path.c_str());
    return 1;
  }
}
