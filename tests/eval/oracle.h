// The oracle: what a predictor of importance that never errs would gain.
//
// The policy `adaptive` predicts what errors in a token's key and value will do to the queries to
// come. The oracle is told: a first pass over the sequence, with FP16 keys and values, records it
// (controller/calibrate/attention_observer.h says what exactly). Then it does as adaptive does, at
// the one price at which the whole sequence meets the budget, which it also knows beforehand.
#ifndef WHIT_TESTS_EVAL_ORACLE_H_
#define WHIT_TESTS_EVAL_ORACLE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controller/precision_policy.h"
#include "controller/rung_choice.h"
#include "kvpool/page_table.h"
#include "runtime/model/model.h"

namespace whit {
class AttentionObserver;
}

namespace whit::eval {

// What is lost by errors in the tokens of one sequence, over all queries that come after a token
// has been decided: importance times squared norm. Only of tokens that are decided at all.
struct FutureLosses {
  int num_kv_heads = 0;
  int first = 0;                            // the sink's page before is not decided
  int tokens = 0;                           // nor is what is still in the ring at the end
  std::vector<float> key = {}, value = {};  // [layer][KV head][token]
};

// The pass that records. Uses the model's probe and its threads.
class OracleRecorder {
 public:
  explicit OracleRecorder(Model& model);
  ~OracleRecorder();

  // `ring` says when tokens are decided. RESOURCE_EXHAUSTED if there is no memory for the sequence.
  absl::StatusOr<FutureLosses> Record(absl::Span<const int32_t> tokens, const RecentRing& ring);

 private:
  Model& model_;
  const std::unique_ptr<AttentionObserver> observer_;
};

// A policy for this sequence and no other: each token in each (layer, KV head) gets the rung of
// least loss and cost, at the lowest price that brings the mean down to `packed_bits`.
std::unique_ptr<const PrecisionPolicy> MakeOraclePolicy(const FutureLosses& losses,
                                                        const RungErrors& errors, int head_dim,
                                                        double packed_bits);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_ORACLE_H_
