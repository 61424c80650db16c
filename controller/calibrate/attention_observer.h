// Watches exact attention over a window of text and tells, of every token's key and value in every
// layer and KV head, what the tokens after it did with them.
//
// Importance, per unit of squared error, of the key k_j and the value v_j. An error e in v_j moves
// the output of query i and head h by a_ij e; one in k_j moves the score by q_i.e / sqrt(d), and so
// the output by a_ij (v_j - o_i) q_i.e / sqrt(d). W_O takes that to the residual stream, whose
// squared length r_i is what it is measured against. With M_h = W_O^T W_O of the head's block, and
// errors in all directions alike:
//   value: sum over i, h of a_ij^2 tr(M_h) / d / r_i
//   key:   sum over i, h of a_ij^2 (v_j - o_i)^T M_h (v_j - o_i) |q_i|^2 / d^2 / r_i
// The sums run over the queries that come after the token has been decided: until then it is exact.
#ifndef WHIT_CONTROLLER_CALIBRATE_ATTENTION_OBSERVER_H_
#define WHIT_CONTROLLER_CALIBRATE_ATTENTION_OBSERVER_H_

#include <Eigen/Core>
#include <cstddef>
#include <vector>

#include "kvpool/page_table.h"
#include "runtime/model/model.h"

namespace whit {

class AttentionObserver {
 public:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  // What was seen of the tokens of one (layer, KV head), by token. Received attention is as in
  // token_signals.h, of the queries before the token was decided.
  struct Sums {
    std::vector<float> attention, squares, recent;
    std::vector<float> key_importance, value_importance;  // of the queries after that
  };

  explicit AttentionObserver(const Model& model);

  // A new window follows, in passes of one slice each, with exact keys and values in `kv`. Token j
  // is decided before query decided_at[j] > j; not falling.
  void Begin(const PageTable* kv, std::vector<int> decided_at);
  void Observe(const LayerView& view);  // as Model::LayerProbe

  const Sums& sums(int layer, int kv_head) const {
    return sums_[size_t{1} * layer * config_.num_kv_heads + kv_head];
  }
  // Of each token as a query in the last layer: the variance of its attention row, mean over heads.
  const std::vector<float>& attention_variance() const { return attention_variance_; }

 private:
  // Of a query head in a layer, with keys, values and outputs rotated as pages are.
  struct OutputForm {
    Matrix form;           // M_h
    float mean_trace = 0;  // tr(M_h) / d
  };
  // What one query head adds in one pass.
  struct HeadSums {
    Sums sums;
    std::vector<float> variance;  // of the attention row, by row
    Eigen::VectorXf value_forms;  // v^T M_h v, by token
  };
  struct KvHead {
    Matrix keys;                // [head_dim][token], of all tokens so far; then zeros
    std::vector<float> values;  // [token][head_dim]
  };
  struct Scratch {
    Matrix queries, turned_queries, outputs, output_forms, weights, right, products;
  };

  void ReadLayer(int layer);
  void MakeValueForms(int layer, int head, int tokens);
  // Queries [begin, end) of the pass, whose first is `first` tokens into the window.
  void ObserveBlock(const LayerView& view, int head, int first, int begin, int end,
                    Scratch& scratch);
  // Turns the probabilities of the query at `position` into the weights of its errors: squares,
  // and zero for the tokens that are not decided yet, whose attention is received instead.
  void Receive(int position, float* row, Sums& sums) const;

  const ModelConfig& config_;
  ThreadPool& pool_;
  const int group_;                  // query heads of a KV head
  std::vector<OutputForm> outputs_;  // [layer][query head]
  const PageTable* kv_ = nullptr;
  std::vector<int> decided_at_;
  std::vector<Sums> sums_;                 // [layer][KV head]
  std::vector<float> attention_variance_;  // [token]
  std::vector<KvHead> layer_;              // [KV head]: the layer under way
  std::vector<HeadSums> heads_;            // [query head]: likewise
  std::vector<Scratch> scratch_;           // [thread]
};

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_ATTENTION_OBSERVER_H_
