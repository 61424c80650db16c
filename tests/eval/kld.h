// The mode `kld`: how far an arm's next-token distributions are from those of FP16 keys and values.
#ifndef WHIT_TESTS_EVAL_KLD_H_
#define WHIT_TESTS_EVAL_KLD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tests/eval/arm_runner.h"
#include "tests/eval/arms.h"
#include "tests/eval/bit_allocation.h"
#include "tests/eval/loaded_model.h"
#include "tests/eval/report.h"
#include "tests/eval/statistics.h"

namespace whit::eval {

// An arm at one context, over all scored positions.
struct KldResult {
  Arm arm;
  int context = 0;
  KvFootprint footprint = {};
  int64_t tokens = 0;
  double perplexity = 0;
  double reference_perplexity = 0;
  double mean = 0, p99 = 0, p999 = 0;  // of D(fp16 || arm), in nats
  double top1_agreement = 0;           // share of positions where both favour the same token
  double delta_ln_ppl = 0;             // ln of the ratio of perplexities
  Interval mean_ci95 = {}, delta_ci95 = {};
  std::vector<double> chunk_kld = {}, chunk_delta_ln_ppl = {};  // of each chunk: for pairing arms
  std::vector<double> chunk_true_bits = {};  // of each chunk when it ended, in the order they did
  BitAllocation bits;

  ResultObject ToJson() const;
};

struct KldOptions {
  std::vector<int> contexts;
  int64_t tokens = 0;  // per context
  int batch = 1;       // chunks at once
};

// Of each context, a result of every arm, in order; fewer if interrupted, when the last context's
// are of what was done of it. Prints a table of each context as soon as it is measured.
absl::StatusOr<std::vector<KldResult>> MeasureKld(const LoadedModel& loaded,
                                                  const std::vector<Arm>& arms,
                                                  absl::Span<const std::vector<int32_t>> texts,
                                                  const KldOptions& options);

// An SVG picture of KLD against true bits, a panel for each context.
std::string PlotKld(absl::Span<const KldResult> results);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_KLD_H_
