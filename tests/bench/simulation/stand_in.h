// StandIn: a tiny model with random weights whose pages are those of a real one.
#ifndef WHIT_TESTS_BENCH_SIMULATION_STAND_IN_H_
#define WHIT_TESTS_BENCH_SIMULATION_STAND_IN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/model/model.h"
#include "runtime/ops/thread_pool.h"
#include "runtime/text/tokenizer.h"

namespace whit {

// One layer, and as many KV heads as there are to be lists of pages. It runs on one thread, so that
// sums of attention, by which policies decide, are the same each time.
class StandIn {
 public:
  StandIn(int lists, int head_dim, int context_length);

  Model& model() { return *model_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Random tokens, the same for the same seed.
  std::vector<int32_t> Prompt(int tokens, uint64_t seed) const;

 private:
  ThreadPool threads_{1};
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

// The capacity of a pool of which pages can use as much as of one of `bytes`, divided by `scale`:
// the room that moving takes is the same in all pools.
size_t StandInPoolBytes(size_t bytes, double scale);

}  // namespace whit

#endif  // WHIT_TESTS_BENCH_SIMULATION_STAND_IN_H_
