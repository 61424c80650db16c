// ArmRunner: runs several arms over the same sequences, teacher-forced, as decoding would.
#ifndef WHIT_TESTS_EVAL_ARM_RUNNER_H_
#define WHIT_TESTS_EVAL_ARM_RUNNER_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/decision_tally.h"
#include "controller/price.h"
#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/engine/sequence_price.h"
#include "runtime/model/model.h"
#include "tests/eval/arms.h"
#include "tests/eval/oracle.h"

namespace whit::eval {

// Tokens to run, and for each the token that should follow it.
struct Sequence {
  static constexpr int32_t kNotScored = -1;
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets = {};  // of the same size; kNotScored where nobody asks
};

// A row of logits that somebody asked for.
struct ScoredRow {
  int sequence = 0;  // index among those run
  int position = 0;
  int32_t target = 0;
  const float* logits = nullptr;  // [vocab_size]
};

// What an arm's sequences held in the pool.
class KvFootprint {
 public:
  // Bytes over K and V elements, x 8: everything a sequence holds, its tables included.
  // When sequences ended:
  double true_bits() const { return 8 * end_bytes_ / end_elements_; }
  // Over the whole run (byte-seconds over element-seconds, a token counting as a second):
  double true_bits_time_averaged() const { return 8 * byte_steps_ / element_steps_; }
  // Codes and scales of decided tokens alone, when sequences ended; NaN if none was decided yet.
  double packed_bits() const { return 8 * decided_bytes_ / decided_elements_; }
  // When sequences ended, in tokens: those of a (layer, KV head), averaged over all of these.
  double tokens_at(Rung rung) const { return tokens_by_rung_[static_cast<size_t>(rung)]; }
  // When sequences ended: everything held, over their tokens.
  double bytes_per_token() const { return end_bytes_ / end_tokens_; }

 private:
  friend class ArmRunner;
  struct Shape {
    int lists = 0;  // layers x KV heads
    int head_dim = 0;
  };
  void AddStep(const PageTable& table, const Arm& arm, int tokens_of_step, const Shape& shape);
  // Returns the sequence's true bits.
  double AddEnd(const PageTable& table, const Arm& arm, const Shape& shape);
  // Of a sequence of so many tokens.
  void AddDecided(std::array<double, kNumRungs> tokens_by_rung, int tokens, const Arm& arm,
                  const Shape& shape);

  double byte_steps_ = 0, element_steps_ = 0;
  double end_bytes_ = 0, end_elements_ = 0, end_tokens_ = 0;
  double decided_bytes_ = 0, decided_elements_ = 0;
  std::array<double, kNumRungs> tokens_by_rung_{};
};

// An arm's sequence, when it has ended.
struct EndedSequence {
  int arm = 0;
  int sequence = 0;      // index among those run
  double true_bits = 0;  // as KvFootprint's, of this one alone
  const PageTable& table;
  const DecisionTally& decisions;  // of each of its tokens
};

// Threads: one run at a time, which uses the model's threads.
class ArmRunner {
 public:
  // Tokens of a slice: a page. Pages leave the ring whole, so a slice that begins at a multiple of
  // this sees exactly what its tokens would see one by one.
  static constexpr int kSliceTokens = kTileTokens;
  // Sequences that are run at once at most.
  static constexpr int kMaxBatch = Model::kMaxForwardTokens / kSliceTokens;

  // How many sequences of `tokens` tokens are sensibly run at once: their memory stays within
  // 4 GB, even if every token is kept at FP16.
  static int DefaultBatch(const ModelConfig& config, size_t num_arms, int tokens);

  // `model` outlives the runner.
  ArmRunner(Model& model, std::vector<Arm> arms);

  // Called after each pass of an arm, the arms of one slice in order, with the rows that have a
  // target. Logits are valid until it returns.
  using RowsFn = absl::FunctionRef<void(int arm, absl::Span<const ScoredRow> rows)>;
  // Called when all arms have passed a slice; false ends the run.
  using StepFn = absl::FunctionRef<bool(int64_t tokens_done)>;
  // Called for each arm of a sequence that has ended, or that the run has ended in.
  using EndFn = absl::FunctionRef<void(const EndedSequence& ended)>;

  // Runs up to `batch` sequences at once; the next begins as soon as one ends. RESOURCE_EXHAUSTED
  // if there is no memory for that many. Sequences must fit the model's context.
  absl::Status Run(
      absl::Span<const Sequence> sequences, int batch, RowsFn on_rows, StepFn on_step,
      EndFn on_end = [](const EndedSequence&) {});

  const std::vector<Arm>& arms() const { return arms_; }
  // Of each arm, over all runs.
  const std::vector<KvFootprint>& footprints() const { return footprints_; }

 private:
  // A sequence under way.
  struct Active {
    int sequence = 0;
    int position = 0;                                       // tokens that were run
    int next = 0;                                           // position after the slice under way
    std::vector<PageTable> table;                           // [arm]
    std::vector<std::unique_ptr<SequenceSignals>> signals;  // [arm]
    std::vector<std::unique_ptr<SequencePrice>> price;      // [arm]
    // [arm]: of an oracle. Null: the arm's.
    std::vector<std::unique_ptr<const PrecisionPolicy>> oracle;
  };

  // A pool that holds `batch` of the longest sequences in every arm, whatever its rungs.
  absl::StatusOr<std::unique_ptr<PagePool>> MakePool(absl::Span<const Sequence> sequences,
                                                     int batch) const;
  absl::StatusOr<Active> Begin(absl::Span<const Sequence> sequences, int sequence, PagePool& pool);
  // The oracles' policies for one sequence.
  absl::Status Foresee(absl::Span<const int32_t> tokens, Active& active);
  absl::Status RunSlice(absl::Span<const Sequence> sequences, std::vector<Active>& active,
                        RowsFn on_rows);
  absl::Status RunArm(int arm, absl::Span<const Sequence> sequences, std::vector<Active>& active,
                      RowsFn on_rows);
  void End(const Active& active, EndFn on_end);

  Model& model_;
  const std::vector<Arm> arms_;
  std::vector<PriceCurve> prices_;            // [arm]
  std::unique_ptr<OracleRecorder> recorder_;  // null: no arm is an oracle
  const KvFootprint::Shape shape_;
  std::vector<KvFootprint> footprints_;  // [arm]
};

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_ARM_RUNNER_H_
