// WhitRunner: Model::Forward over page tables, as the engine thread calls it.
#ifndef WHIT_TESTS_BENCH_WHIT_RUNNER_H_
#define WHIT_TESTS_BENCH_WHIT_RUNNER_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/policy_lookup.h"
#include "controller/precision_policy.h"
#include "kvpool/page_pool.h"
#include "kvpool/page_table.h"
#include "runtime/engine/sequence_price.h"
#include "runtime/model/model.h"
#include "runtime/ops/thread_pool.h"
#include "tests/bench/runner.h"

namespace whit {

class WhitRunner : public Runner {
 public:
  struct Options {
    std::string model_path;
    PrecisionPolicySpec kv_policy;
    std::string kv_policy_file;  // as whitd's flag of that name
    int max_kv_tokens = 0;       // what the page pool holds, counted over all sequences
  };
  // `threads` outlives the runner.
  static absl::StatusOr<std::unique_ptr<WhitRunner>> Create(const Options& options,
                                                            ThreadPool& threads);

  absl::Status Prepare(int sequences, int depth) override;
  absl::StatusOr<double> Decode(int steps) override;
  absl::StatusOr<double> Prefill(int tokens) override;

  const ModelConfig& config() const { return model_->config(); }
  // Null: none.
  const FoundPolicy* policy_file() const { return policy_file_.get(); }
  // What one pass over the prepared sequences reads.
  size_t weight_bytes_per_step() const { return model_->weights().bytes_per_step(); }
  size_t kv_bytes() const;
  // Tokens in each prepared sequence.
  int depth() const { return depth_; }

 private:
  WhitRunner(std::unique_ptr<Model> model, std::unique_ptr<const FoundPolicy> policy_file,
             std::unique_ptr<PagePool> pool, const PrecisionPolicySpec& kv_policy,
             std::unique_ptr<const PrecisionPolicy> policy);
  // Empty sequences in place of all that were.
  void Restart(int sequences);
  // Runs `count` new tokens through the model, behind the depth_ tokens of a sequence; `logits` of
  // the last chunk.
  absl::Status Append(size_t sequence, int count, ForwardSlice::Logits logits);

  const std::unique_ptr<Model> model_;
  const std::unique_ptr<const FoundPolicy> policy_file_;
  const std::unique_ptr<PagePool> pool_;
  const RecentRing ring_;
  const PrecisionPolicySpec kv_policy_;
  const std::unique_ptr<const PrecisionPolicy> policy_;
  TokenSource tokens_;
  std::vector<PageTable> sequences_;
  std::vector<std::unique_ptr<SequencePrice>> prices_;     // [sequence]
  std::vector<std::unique_ptr<SequenceSignals>> signals_;  // [sequence]
  int depth_ = 0;
};

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_WHIT_RUNNER_H_
