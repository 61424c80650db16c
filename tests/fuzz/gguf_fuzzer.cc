// Everything that is done with a model file before it is trusted, on arbitrary bytes; and if they
// make a model, what its weights may do to the forward pass.
//
// With clang, -DWHIT_FUZZ=ON and -DWHIT_SANITIZE=address,undefined this is a libFuzzer target;
// begin with a corpus of one file written by `whit_make_tiny_model SEED --hidden=32 --ffn=32
// --layers=1`. Without, mutation_runner.cc feeds it a bounded number of mutations.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kvpool/page_table.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model.h"

namespace whit {
namespace {

// Calls every getter on every key, whatever the type asked for.
void ReadTokenizerMetadata(const GgufFile& file) {
  for (const char* key :
       {"tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"}) {
    (void)file.Has(key);
    (void)file.GetUint(key);
    (void)file.GetFloat(key);
    (void)file.GetBool(key);
    (void)file.GetString(key);
    (void)file.GetStringArray(key);
    (void)file.GetIntArray(key);
    (void)file.GetFloatArray(key);
  }
}

void RunOneToken(Model& model) {
  const ModelConfig& config = model.config();
  const auto pool =
      PagePool::Create({.capacity_bytes = size_t{4} << 20, .head_dim = config.head_dim});
  if (!pool.ok()) return;
  PageTable table = model.NewPageTable(**pool, RecentRing{});  // no policy: nothing leaves it
  const int32_t token = config.vocab_size - 1;
  (void)model.Forward({{.tokens = absl::MakeConstSpan(&token, 1), .kv = &table}});
}

}  // namespace
}  // namespace whit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static whit::ThreadPool& threads = *new whit::ThreadPool(1);
  const auto file =
      whit::GgufFile::Parse(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(data), size));
  if (!file.ok()) return 0;
  whit::ReadTokenizerMetadata(**file);
  const auto model = whit::Model::Load(**file, threads);
  if (model.ok()) whit::RunOneToken(**model);
  return 0;
}
