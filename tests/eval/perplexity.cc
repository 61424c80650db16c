#include "tests/eval/perplexity.h"

#include <cmath>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/eval/arm_runner.h"
#include "tests/eval/arms.h"
#include "tests/eval/logit_comparison.h"
#include "tests/eval/progress.h"
#include "tests/eval/statistics.h"
#include "tests/eval/text_chunks.h"

namespace whit::eval {
namespace {

std::vector<Arm> MakeArms() {
  std::vector<Arm> arms;
  const auto add = [&](const char* name, ActivationFormat activations) {
    arms.push_back(ReferenceArm());
    arms.back().name = name;
    arms.back().activations = activations;
  };
  add("16-bit activations", ActivationFormat::kInt16);
  add("8-bit activations", ActivationFormat::kInt8);
  if (PromptActivations() == ActivationFormat::kBFloat16) {
    add("bfloat16 activations and weights", ActivationFormat::kBFloat16);
  }
  return arms;
}

}  // namespace

ResultObject PerplexityResult::ToJson() const {
  return {{"arm", name},
          {"tokens", tokens},
          {"chunks", chunks},
          {"ppl", all_positions},
          {"ppl_second_half", second_half}};
}

absl::StatusOr<std::vector<PerplexityResult>> MeasurePerplexity(const LoadedModel& loaded,
                                                                const std::vector<int32_t>& text,
                                                                int context, int batch) {
  const absl::StatusOr<std::vector<Sequence>> chunks =
      CutChunks({text}, context, static_cast<int64_t>(text.size()), *loaded.tokenizer);
  if (!chunks.ok()) return chunks.status();
  const std::vector<Arm> arms = MakeArms();
  const size_t vocab_size = loaded.model->config().vocab_size;
  std::vector<Block> all(arms.size()), second_half(arms.size());
  const auto add = [&](int arm, absl::Span<const ScoredRow> rows) {
    std::vector<double> losses(rows.size());
    loaded.threads->ParallelFor(rows.size(), 1, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        losses[i] = -MakeLogitRow(rows[i].logits, vocab_size).LogProbability(rows[i].target);
      }
    });
    for (size_t i = 0; i < rows.size(); ++i) {
      all[arm].sum += losses[i];
      ++all[arm].count;
      if (rows[i].position < context / 2) continue;
      second_half[arm].sum += losses[i];
      ++second_half[arm].count;
    }
  };
  {
    Progress progress("perplexity", static_cast<int64_t>(chunks->size()) * context);
    ArmRunner runner(*loaded.model, arms);
    const absl::Status status = runner.Run(*chunks, batch, add, [&](int64_t done) {
      progress.Update(done, absl::StrFormat("%.3f", std::exp(Mean({all[0]}))));
      return !Interrupted();
    });
    if (!status.ok()) return status;
  }
  std::cout << absl::StrFormat("Perplexity, FP16 keys and values, %d chunks of %d tokens\n",
                               chunks->size(), context);
  Table table({"", "positions", "all positions", "second half"});
  std::vector<PerplexityResult> results;
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    results.push_back({.name = arms[arm].name,
                       .tokens = all[arm].count,
                       .chunks = static_cast<int>(chunks->size()),
                       .all_positions = std::exp(Mean({all[arm]})),
                       .second_half = std::exp(Mean({second_half[arm]}))});
    const PerplexityResult& r = results.back();
    table.AddRow({r.name, absl::StrCat(r.tokens), absl::StrFormat("%.4f", r.all_positions),
                  absl::StrFormat("%.4f", r.second_half)});
  }
  std::cout << table.ToString() << std::endl;
  return results;
}

}  // namespace whit::eval
