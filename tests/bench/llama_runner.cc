#include "tests/bench/llama_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace whit {
namespace {

constexpr int kBatchTokens = 2048;
// Room for the tokens that a run adds at a depth.
constexpr int kSlackTokens = 128;
// A long sequence is filled in so many parts that do not see each other, which are then joined:
// what the keys and values hold does not matter for speed, and their attention costs less to
// compute.
constexpr int kFillParts = 16;

}  // namespace

absl::StatusOr<LlamaModelPtr> LoadLlamaModel(const LlamaLibrary& library, const std::string& path) {
  LlamaModelPtr model(library.model_load_from_file(path.c_str(), library.model_default_params()),
                      library.model_free);
  if (model == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("llama.cpp cannot load ", path));
  }
  return model;
}

LlamaRunner::LlamaRunner(const LlamaLibrary& library, LlamaModel& model, const Options& options)
    : library_(library),
      model_(model),
      options_(options),
      tokens_(options.vocab_size),
      token_(kBatchTokens),
      position_(kBatchTokens),
      sequence_count_(kBatchTokens, 1),
      sequence_(kBatchTokens),
      sequence_pointer_(kBatchTokens),
      logits_(kBatchTokens) {
  for (int i = 0; i < kBatchTokens; ++i) sequence_pointer_[i] = &sequence_[i];
}

absl::Status LlamaRunner::Prepare(int sequences, int depth) {
  const int capacity = (sequences == 1 ? options_.max_depth : depth) + kSlackTokens;
  if (absl::Status s = MakeContext(sequences, capacity); !s.ok()) return s;
  LlamaMemory* memory = library_.get_memory(context_.get());
  if (depth_ < depth) {
    if (absl::Status s = Fill(depth_, depth - depth_); !s.ok()) return s;
    for (int i = 1; i < sequences; ++i) library_.memory_seq_cp(memory, 0, i, -1, -1);
  }
  for (int i = 0; i < sequences; ++i) library_.memory_seq_rm(memory, i, depth, -1);
  depth_ = depth;
  return absl::OkStatus();
}

absl::StatusOr<double> LlamaRunner::Decode(int steps) {
  const absl::Time start = absl::Now();
  for (int step = 0; step < steps; ++step) {
    for (int i = 0; i < sequences_; ++i) {
      token_[i] = tokens_.Next();
      position_[i] = depth_;
      sequence_[i] = i;
      logits_[i] = 1;
    }
    if (absl::Status s = Run(sequences_); !s.ok()) return s;
    ++depth_;
  }
  return absl::ToDoubleSeconds(absl::Now() - start);
}

absl::StatusOr<double> LlamaRunner::Prefill(int tokens) {
  if (absl::Status s = MakeContext(1, options_.max_depth + kSlackTokens); !s.ok()) return s;
  library_.memory_clear(library_.get_memory(context_.get()), false);
  depth_ = 0;
  const absl::Time start = absl::Now();
  for (int begin = 0; begin < tokens; begin += kBatchTokens) {
    const int count = std::min(kBatchTokens, tokens - begin);
    if (absl::Status s = Append(0, begin, count, begin + count == tokens); !s.ok()) return s;
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  depth_ = tokens;
  return seconds;
}

absl::Status LlamaRunner::MakeContext(int sequences, int capacity) {
  if (context_ != nullptr && sequences == sequences_ && capacity <= capacity_) {
    return absl::OkStatus();
  }
  constexpr uint32_t kCellMultiple = 256;  // of a sequence's share of the cache
  LlamaContextParams params = library_.context_default_params();
  const bool single = sequences == 1;
  const uint32_t cells = (capacity + kCellMultiple - 1) / kCellMultiple * kCellMultiple;
  params.n_ctx = sequences * cells;
  params.n_seq_max = single ? kFillParts : sequences;
  params.kv_unified = single;
  params.n_batch = kBatchTokens;
  params.n_outputs_max = params.n_seq_max;
  params.n_threads = params.n_threads_batch = options_.threads;
  params.flash_attn_type = options_.flash_attention ? 1 : 0;
  params.type_k = params.type_v = options_.kv_type;
  context_.reset();
  context_ = {library_.init_from_model(&model_, params), library_.free};
  if (context_ == nullptr) {
    return absl::FailedPreconditionError("llama.cpp cannot make a context with these options");
  }
  sequences_ = sequences;
  capacity_ = capacity;
  depth_ = 0;
  return absl::OkStatus();
}

absl::Status LlamaRunner::Fill(int position, int count) {
  LlamaMemory* memory = library_.get_memory(context_.get());
  // Sequences of their own exist only in the context of a single one.
  const int parts = sequences_ == 1 ? kFillParts : 1;
  const int part_tokens = std::min(kBatchTokens, (count + parts - 1) / parts);
  for (int begin = 0, part = 0; begin < count; begin += part_tokens, ++part) {
    const int sequence = sequences_ == 1 ? part % kFillParts : 0;
    const int tokens = std::min(part_tokens, count - begin);
    if (absl::Status s = Append(sequence, position + begin, tokens, false); !s.ok()) return s;
    if (sequence != 0) {
      library_.memory_seq_cp(memory, sequence, 0, -1, -1);
      library_.memory_seq_rm(memory, sequence, -1, -1);
    }
  }
  return absl::OkStatus();
}

absl::Status LlamaRunner::Append(int sequence, int position, int count, bool logits) {
  for (int i = 0; i < count; ++i) {
    token_[i] = tokens_.Next();
    position_[i] = position + i;
    sequence_[i] = sequence;
    logits_[i] = logits && i == count - 1;
  }
  return Run(count);
}

absl::Status LlamaRunner::Run(int num_tokens) {
  const LlamaBatch batch = {.n_tokens = num_tokens,
                            .token = token_.data(),
                            .embd = nullptr,
                            .pos = position_.data(),
                            .n_seq_id = sequence_count_.data(),
                            .seq_id = sequence_pointer_.data(),
                            .logits = logits_.data()};
  if (const int32_t error = library_.decode(context_.get(), batch); error != 0) {
    return absl::InternalError(absl::StrCat("llama_decode failed with ", error));
  }
  library_.synchronize(context_.get());
  return absl::OkStatus();
}

}  // namespace whit
