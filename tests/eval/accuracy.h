// Items that an arm gets right or wrong: how tasks and needles are scored.
#ifndef WHIT_TESTS_EVAL_ACCURACY_H_
#define WHIT_TESTS_EVAL_ACCURACY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tests/eval/arm_runner.h"
#include "tests/eval/arms.h"
#include "tests/eval/loaded_model.h"
#include "tests/eval/report.h"
#include "tests/eval/statistics.h"

namespace whit::eval {

// With several choices, the likeliest is the answer. With one, the answer is right if each of its
// tokens is the likeliest after those before it: exactly when greedy decoding would write it.
struct ScoredItem {
  std::vector<Sequence> choices;
  // Of each choice; the accuracy by likelihood per byte is reported as well. Empty: it is not.
  std::vector<int> bytes = {};
  int gold = 0;
};

// A share of items, and its comparison with FP16 on the same items.
struct Accuracy {
  double share = 0;
  Interval ci95;
  double delta = 0;  // share - that of FP16
  Interval delta_ci95;
  int64_t only_fp16 = 0, only_arm = 0;  // items that just one of the two got right
  double mcnemar_p = 1;

  ResultObject ToJson() const;
};

struct AccuracyResult {
  Arm arm;
  std::string task;
  int context = 0;  // tokens of the longest sequence
  KvFootprint footprint;
  int64_t items = 0;
  Accuracy accuracy = {};
  std::optional<Accuracy> accuracy_norm = {};  // by likelihood per byte

  ResultObject ToJson() const;
};

// A result of every arm, in order; of the items finished if interrupted, none if there are none.
absl::StatusOr<std::vector<AccuracyResult>> MeasureAccuracy(const LoadedModel& loaded,
                                                            const std::vector<Arm>& arms,
                                                            const std::string& task,
                                                            absl::Span<const ScoredItem> items,
                                                            int batch);

void PrintAccuracy(absl::Span<const AccuracyResult> results);

// An SVG picture of accuracy against true bits, a panel for each task.
std::string PlotAccuracy(absl::Span<const AccuracyResult> results);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_ACCURACY_H_
