// Model: the weights of a llama-architecture model and its forward pass.
#ifndef WHIT_RUNTIME_MODEL_MODEL_H_
#define WHIT_RUNTIME_MODEL_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/decision_tally.h"
#include "controller/precision_policy.h"
#include "hwy/aligned_allocator.h"
#include "kvpool/key_means.h"
#include "kvpool/page_table.h"
#include "runtime/model/forward_times.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model_config.h"
#include "runtime/model/weights.h"
#include "runtime/ops/attention.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

// Consecutive tokens of one sequence, to be run through the model.
struct ForwardSlice {
  absl::Span<const int32_t> tokens;         // each in [0, vocab_size)
  int first_position = 0;                   // = tokens already in `kv`
  PageTable* kv = nullptr;                  // its status() tells whether the pool had room
  const PrecisionPolicy* policy = nullptr;  // for what leaves kv's ring; null if nothing does
  double price = 0;                         // LeavingTokens::price
  DecisionTally* decisions = nullptr;       // gets what `policy` decides; may be null
  // Gets what `policy` needs to know; may be null if it needs nothing.
  SequenceSignals* signals = nullptr;
  // kInt16 for decoding.
  ActivationFormat activations = PromptActivations();
  // More of the same prompt follows in a later pass: until then the tokens behind the last multiple
  // of kPrefillBlock stay in the ring.
  bool prompt_continues = false;
  enum class Logits { kNone, kLast, kAll } logits = Logits::kLast;
};

// What a layer's attention did in a pass, for calibration: a row for each token of the pass, in the
// order of slices and tokens.
struct LayerView {
  int layer = 0;
  int num_rows = 0;
  // [head][head_dim] each, rows `stride` floats apart: after RoPE; keys and values are rotated as
  // pages are (kvpool/quantizer.h), queries are not.
  const float* queries = nullptr;
  const float* keys = nullptr;
  const float* values = nullptr;
  size_t stride = 0;
  const float* attended = nullptr;  // [row][query head][head_dim]: what attention gave, not rotated
  const float* residual = nullptr;  // [row][hidden_size]: the residual stream after attention
};

// Threads: one Forward at a time; it uses all threads of the pool.
class Model {
 public:
  // Repacks the weights; afterwards `file` is not needed. `pool` outlives the model. Errors as
  // ReadModelConfig; RESOURCE_EXHAUSTED if the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const GgufFile& file, ThreadPool& pool);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return *weights_; }
  // Between two calls of Forward its caller may use the threads.
  ThreadPool& thread_pool() const { return pool_; }

  // Runs all slices in one pass and appends their keys and values to their tables. Returns the
  // logits asked for, [rows][vocab_size] in the order of slices and tokens, valid until the next
  // call. A row's logits do not depend, bitwise, on the other slices; nor on how its prompt was cut
  // into slices, if all but the last say so (but signals are sums, whose last bits do: a policy
  // that reads them may decide a tie otherwise). At most kMaxForwardTokens tokens in all, at least
  // one.
  absl::Span<const float> Forward(absl::Span<const ForwardSlice> slices);

  // Of the last Forward.
  const ForwardTimes& times() const { return times_; }

  static constexpr int kMaxForwardTokens = 512;
  // A long slice is attended in blocks that end at multiples of this position. Tokens leave the
  // ring between blocks, so those of one block see each other exactly.
  static constexpr int kPrefillBlock = 128;

  // An empty table for a new sequence.
  PageTable NewPageTable(PagePool& pool, const RecentRing& ring) const;
  // Keys are quantized relative to these means, [layer][KV head][head_dim] before RoPE; before the
  // first table is made.
  void SetKeyMeans(std::vector<float> means);

  // Is shown every layer of every pass, by the thread that calls Forward, which may use the thread
  // pool meanwhile. Null: none.
  using LayerProbe = std::function<void(const LayerView& view)>;
  void SetLayerProbe(LayerProbe probe) { layer_probe_ = std::move(probe); }

 private:
  Model(ModelConfig config, std::unique_ptr<ModelWeights> weights, ThreadPool& pool);

  // The part of a slice that is attended at once.
  struct Piece {
    const ForwardSlice* slice;
    size_t first_row;
    int first_position;
    int num_tokens;
  };

  // rounds_[r] = the r-th piece of every slice that has as many.
  void CutIntoRounds(absl::Span<const ForwardSlice> slices);
  void Embed(absl::Span<const ForwardSlice> slices);
  // Cosines and sines of each token's position, in RotatePairs' layout.
  void PrepareRope(absl::Span<const ForwardSlice> slices);
  void AttentionBlock(int layer);
  // Applies RoPE to queries and keys, and rotates them and the values as pages are.
  void RotateRows();
  void AttendRound(int layer, absl::Span<const Piece> pieces);
  void Append(int layer, absl::Span<const Piece> pieces);
  void SettleLeaving(int layer, absl::Span<const Piece> pieces);
  // All that is due of one (layer, KV head).
  void SettleHead(int layer, int kv_head, const Piece& piece) const;
  // Fills what TokenFeatureLogs take from the last layer and from the logits of the pass.
  void ObserveAttention(absl::Span<const ForwardSlice> slices);
  void ObserveLogits(absl::Span<const ForwardSlice> slices, absl::Span<const int> rows,
                     absl::Span<const float> logits);
  void FeedForwardBlock(int layer);
  absl::Span<const float> ComputeLogits(absl::Span<const ForwardSlice> slices);
  // logits = [rows][vocab_size] of these rows.
  void MultiplyByOutput(absl::Span<const int> rows, float* logits);

  size_t qkv_stride() const { return config_.query_size() + size_t{2} * config_.kv_size(); }
  // Rows that lie a multiple of 4 KiB apart would compete for the same places of the cache.
  size_t ffn_stride() const { return size_t{1} * config_.ffn_size + 16; }

  // activations_ = quantized rows of RmsNorm(hidden_ row, weight), one for each entry of `rows`, or
  // for every row if it is empty.
  void NormalizeInto(const float* weight, absl::Span<const int> rows);

  const ModelConfig config_;
  const std::unique_ptr<ModelWeights> weights_;
  ThreadPool& pool_;
  const AttentionShape attention_shape_;
  std::unique_ptr<KeyMeans> key_means_;  // null: keys are quantized as they are
  LayerProbe layer_probe_;
  ForwardTimes times_;
  LapTimer lap_;

  // Buffers of one pass, [token][…]: those of the matrices for the largest pass, so that memory is
  // only touched as passes need it; the others grown to the largest pass seen.
  int num_tokens_ = 0;
  std::vector<ActivationFormat> activation_formats_;  // of each token
  hwy::AlignedFreeUniquePtr<float[]> hidden_;         // [hidden_size]: the residual stream
  hwy::AlignedFreeUniquePtr<float[]> normed_;         // [hidden_size]
  hwy::AlignedFreeUniquePtr<float[]> qkv_;            // [query_size + 2 * kv_size]
  hwy::AlignedFreeUniquePtr<float[]> attended_;       // [query_size]
  hwy::AlignedFreeUniquePtr<float[]> gated_floats_;   // [ffn_stride()], if weights are floats
  std::vector<float> cosines_;                        // [rope_dims]
  std::vector<float> sines_;                          // [rope_dims]
  std::vector<float> logits_;                         // [row][vocab_size]
  std::vector<float> observed_logits_;                // likewise, of rows that nobody asked for
  std::vector<float> squared_probabilities_;          // [query head], of the last layer
  Activations activations_;
  Activations gated_;  // of the feed-forward block
  AttentionQueries queries_;
  std::vector<std::vector<Piece>> rounds_;
  AttentionScratch attention_scratch_;
  std::vector<AttentionSlice> attention_slices_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_MODEL_MODEL_H_
