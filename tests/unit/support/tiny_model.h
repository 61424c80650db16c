// A llama-architecture model small enough for a test, with random weights and a complete tokenizer.
#ifndef WHIT_TESTS_UNIT_SUPPORT_TINY_MODEL_H_
#define WHIT_TESTS_UNIT_SUPPORT_TINY_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "runtime/model/gguf.h"
#include "tests/unit/support/gguf_writer.h"

namespace whit {

struct TinyModelOptions {
  int context_length = 2048;
  int hidden_size = 64;  // this, ffn_size and num_heads * head_dim: multiples of the types' blocks
  int ffn_size = 160;
  int num_layers = 2;
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 16;
  bool tied_embeddings = true;
  std::string pre_tokenizer = "smollm";
  bool add_bos = false;
  TensorType matrix_type = TensorType::kQ4_1;
  TensorType embedding_type = TensorType::kQ8_0;  // of the output matrix too
  uint32_t seed = 1;
};

// Keys and tensors as in the quickstart model's file. The vocabulary: <|endoftext|>, <|im_start|>,
// <|im_end|> (ids 0 to 2; the last ends a generation), the 256 bytes, and some merges. Greedy
// output is printable ASCII and does not end by itself: special tokens and other bytes have small
// embeddings, so their logits never win.
GgufWriter MakeTinyModel(const TinyModelOptions& options = {});

// Random rows of any type whose elements have roughly the given root mean square, each of `rms` for
// one row of `cols` elements.
std::vector<std::byte> RandomRows(TensorType type, size_t cols, const std::vector<float>& rms,
                                  std::mt19937& rng);

}  // namespace whit

#endif  // WHIT_TESTS_UNIT_SUPPORT_TINY_MODEL_H_
