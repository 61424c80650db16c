// LlamaLibrary: llama.cpp's C API, loaded at run time from the package that tests/bench/fetch_peer
// gets. Its headers are in no package, so the types are declared here by hand, for that version.
#ifndef WHIT_TESTS_BENCH_LLAMA_LIBRARY_H_
#define WHIT_TESTS_BENCH_LLAMA_LIBRARY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace whit {

struct LlamaModel;
struct LlamaContext;
struct LlamaMemory;

// llama_model_params; only its defaults are used.
struct LlamaModelParams {
  std::array<std::byte, 80> bytes;
};

// llama_context_params.
struct LlamaContextParams {
  uint32_t n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq;
  int32_t n_threads, n_threads_batch;
  int32_t ctx_type, rope_scaling_type, pooling_type, attention_type, flash_attn_type;
  float rope_freq_base, rope_freq_scale;
  float yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow;
  uint32_t yarn_orig_ctx;
  float defrag_thold;
  void* cb_eval;
  void* cb_eval_user_data;
  int32_t type_k, type_v;
  void* abort_callback;
  void* abort_callback_data;
  bool embeddings, offload_kqv, no_perf, op_offload, swa_full, kv_unified;
  void* samplers;
  size_t n_samplers;
  void* ctx_other;
};
static_assert(sizeof(LlamaContextParams) == 160);

// llama_batch. Arrays have n_tokens elements.
struct LlamaBatch {
  int32_t n_tokens;
  int32_t* token;
  float* embd;
  int32_t* pos;
  int32_t* n_seq_id;
  int32_t** seq_id;
  int8_t* logits;
};

struct LlamaLibrary {
  // Loads the library found below `directory` and its backends. NOT_FOUND if there is none,
  // FAILED_PRECONDITION if it is of another version than the one declared here.
  static absl::StatusOr<std::unique_ptr<LlamaLibrary>> Load(const std::string& directory);

  LlamaModelParams (*model_default_params)();
  LlamaModel* (*model_load_from_file)(const char* path, LlamaModelParams params);
  void (*model_free)(LlamaModel*);
  LlamaContextParams (*context_default_params)();
  LlamaContext* (*init_from_model)(LlamaModel*, LlamaContextParams params);
  void (*free)(LlamaContext*);
  LlamaMemory* (*get_memory)(LlamaContext*);
  void (*memory_clear)(LlamaMemory*, bool data);
  // Positions in [p0, p1); -1 stands for the first and the last.
  bool (*memory_seq_rm)(LlamaMemory*, int32_t sequence, int32_t p0, int32_t p1);
  void (*memory_seq_cp)(LlamaMemory*, int32_t from, int32_t to, int32_t p0, int32_t p1);
  int32_t (*decode)(LlamaContext*, LlamaBatch);  // 0 is success
  void (*synchronize)(LlamaContext*);
};

// ggml's number of a KV cache type: "f16", "q8_0" or "q4_0". INVALID_ARGUMENT lists them.
absl::StatusOr<int32_t> ParseLlamaKvType(const std::string& name);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_LLAMA_LIBRARY_H_
