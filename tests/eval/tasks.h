// Tasks of multiple choice and of the last word, read from JSON Lines.
#ifndef WHIT_TESTS_EVAL_TASKS_H_
#define WHIT_TESTS_EVAL_TASKS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/text/tokenizer.h"
#include "tests/eval/accuracy.h"

namespace whit::eval {

// What a model is asked: which continuation follows its context.
struct TaskItem {
  struct Choice {
    std::string context, continuation;
  };
  std::vector<Choice> choices = {};
  int gold = 0;
  bool per_byte = false;  // likelihoods are compared per byte of the continuation as well
};

// Items of a file, by task (fields of a line; what is asked):
//   hellaswag    activity_label, ctx, ctx_b_start, endings, label; "label: ctx" + " ending"
//   arc, piqa    query, choices, gold; "Question: query\nAnswer:" + " choice"
//   openbookqa   query, choices, gold; "query" + " choice"
//   winogrande   query with one "_", choices, gold; the text up to "_" with a choice in its place +
//                the text after it
//   lambada      context, target; "context" + " target", to be written by greedy decoding
// INVALID_ARGUMENT names the line and what is missing; an unknown task lists those there are.
absl::StatusOr<std::vector<TaskItem>> ParseTask(std::string_view task, std::string_view json_lines);

struct TaskOptions {
  int limit = 0;          // items, spread evenly over the file; 0: all
  int prefix_tokens = 0;  // solved items before each, as many whole ones as fit
  int context_length = 0;
};

// Each item's prefix is those that follow it in the file, the first ones following the last.
// INVALID_ARGUMENT if an item is longer than the context.
absl::StatusOr<std::vector<ScoredItem>> MakeScoredItems(absl::Span<const TaskItem> items,
                                                        const Tokenizer& tokenizer,
                                                        const TaskOptions& options);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_TASKS_H_
