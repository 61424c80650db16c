#include "tests/eval/accuracy.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/eval/logit_comparison.h"
#include "tests/eval/progress.h"
#include "tests/eval/svg_plot.h"

namespace whit::eval {
namespace {

// What an arm makes of a sequence's targets.
struct Likelihood {
  double log_probability = 0;
  bool greedy = true;  // each was the likeliest token
  int64_t scored = 0;
};

struct Judgement {
  bool right = false;
  bool right_per_byte = false;
};

Judgement Judge(const ScoredItem& item, const Likelihood* choices) {
  const size_t count = item.choices.size();
  if (count == 1) return {.right = choices[0].greedy};
  const auto likeliest = [&](auto score) {
    size_t best = 0;
    for (size_t i = 1; i < count; ++i) {
      if (score(i) > score(best)) best = i;
    }
    return static_cast<int>(best);
  };
  Judgement judgement;
  judgement.right = likeliest([&](size_t i) { return choices[i].log_probability; }) == item.gold;
  if (!item.bytes.empty()) {
    judgement.right_per_byte = likeliest([&](size_t i) {
                                 return choices[i].log_probability / item.bytes[i];
                               }) == item.gold;
  }
  return judgement;
}

Accuracy Summarize(absl::Span<const Judgement> arm, absl::Span<const Judgement> fp16,
                   bool Judgement::*right) {
  Accuracy accuracy;
  std::vector<Block> rights, deltas;  // an item is a block
  for (size_t i = 0; i < arm.size(); ++i) {
    const int here = arm[i].*right ? 1 : 0, there = fp16[i].*right ? 1 : 0;
    rights.push_back({.sum = 1.0 * here, .count = 1});
    deltas.push_back({.sum = 1.0 * (here - there), .count = 1});
    accuracy.only_arm += here > there ? 1 : 0;
    accuracy.only_fp16 += there > here ? 1 : 0;
  }
  accuracy.share = Mean(rights);
  accuracy.ci95 = BootstrapMean(rights);
  accuracy.delta = Mean(deltas);
  accuracy.delta_ci95 = BootstrapMean(deltas);
  accuracy.mcnemar_p = McNemarP(accuracy.only_fp16, accuracy.only_arm);
  return accuracy;
}

int64_t CountTargets(const Sequence& sequence) {
  return std::count_if(sequence.targets.begin(), sequence.targets.end(),
                       [](int32_t target) { return target != Sequence::kNotScored; });
}

// The likelihoods of all sequences under each arm, filled as rows come.
class Tally {
 public:
  Tally(size_t arms, size_t sequences, size_t vocab_size, ThreadPool& threads)
      : vocab_size_(vocab_size),
        threads_(threads),
        arms_(arms, std::vector<Likelihood>(sequences)) {}

  void Add(int arm, absl::Span<const ScoredRow> rows) {
    std::vector<LogitRow> logits(rows.size());
    threads_.ParallelFor(rows.size(), 1, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) logits[i] = MakeLogitRow(rows[i].logits, vocab_size_);
    });
    for (size_t i = 0; i < rows.size(); ++i) {
      Likelihood& likelihood = arms_[arm][rows[i].sequence];
      likelihood.log_probability += logits[i].LogProbability(rows[i].target);
      likelihood.greedy &= logits[i].arg_max == static_cast<size_t>(rows[i].target);
      ++likelihood.scored;
    }
  }

  const std::vector<Likelihood>& arm(size_t arm) const { return arms_[arm]; }

 private:
  const size_t vocab_size_;
  ThreadPool& threads_;
  std::vector<std::vector<Likelihood>> arms_;  // [arm][sequence]
};

// Of the items whose every choice was scored to the end, in order.
std::vector<Judgement> JudgeFinished(absl::Span<const ScoredItem> items,
                                     const std::vector<Likelihood>& likelihoods) {
  std::vector<Judgement> judgements;
  const Likelihood* next = likelihoods.data();
  for (const ScoredItem& item : items) {
    const Likelihood* choices = std::exchange(next, next + item.choices.size());
    bool finished = true;
    for (size_t i = 0; i < item.choices.size(); ++i) {
      finished &= choices[i].scored == CountTargets(item.choices[i]);
    }
    if (finished) judgements.push_back(Judge(item, choices));
  }
  return judgements;
}

std::string Significance(const Accuracy& accuracy) {
  return absl::StrFormat("%+.1f (p %.2f)", 100 * accuracy.delta, accuracy.mcnemar_p);
}

std::string Percent(const Accuracy& accuracy) {
  return WithInterval("%.1f", 100 * accuracy.share,
                      {.low = 100 * accuracy.ci95.low, .high = 100 * accuracy.ci95.high});
}

}  // namespace

ResultObject Accuracy::ToJson() const {
  return {{"share", share},
          {"ci95", {{"share", eval::ToJson(ci95)}, {"delta", eval::ToJson(delta_ci95)}}},
          {"delta", delta},
          {"only_fp16_right", only_fp16},
          {"only_arm_right", only_arm},
          {"mcnemar_p", mcnemar_p}};
}

ResultObject AccuracyResult::ToJson() const {
  ResultObject object = DescribeArm(arm, footprint);
  object["task"] = task;
  object["context"] = context;
  object["items"] = items;
  object["accuracy"] = accuracy.ToJson();
  if (accuracy_norm.has_value()) object["accuracy_norm"] = accuracy_norm->ToJson();
  return object;
}

absl::StatusOr<std::vector<AccuracyResult>> MeasureAccuracy(const LoadedModel& loaded,
                                                            const std::vector<Arm>& arms,
                                                            const std::string& task,
                                                            absl::Span<const ScoredItem> items,
                                                            int batch) {
  std::vector<Sequence> sequences;
  size_t tokens = 0, longest = 0;
  bool per_byte = true;
  for (const ScoredItem& item : items) {
    per_byte &= !item.bytes.empty();
    for (const Sequence& choice : item.choices) {
      sequences.push_back(choice);
      tokens += choice.tokens.size();
      longest = std::max(longest, choice.tokens.size());
    }
  }
  ArmRunner runner(*loaded.model, arms);
  Tally tally(arms.size(), sequences.size(), loaded.model->config().vocab_size, *loaded.threads);
  {
    Progress progress(task, static_cast<int64_t>(tokens));
    const absl::Status status = runner.Run(
        sequences, batch, [&](int arm, absl::Span<const ScoredRow> rows) { tally.Add(arm, rows); },
        [&](int64_t done) {
          progress.Update(done);
          return !Interrupted();
        });
    if (!status.ok()) return status;
  }
  const std::vector<Judgement> fp16 = JudgeFinished(items, tally.arm(0));
  std::vector<AccuracyResult> results;
  for (size_t i = 0; i < arms.size() && !fp16.empty(); ++i) {
    const std::vector<Judgement> arm = JudgeFinished(items, tally.arm(i));
    AccuracyResult& result = results.emplace_back();
    result = {.arm = arms[i],
              .task = task,
              .context = static_cast<int>(longest),
              .footprint = runner.footprints()[i],
              .items = static_cast<int64_t>(arm.size())};
    result.accuracy = Summarize(arm, fp16, &Judgement::right);
    if (per_byte) result.accuracy_norm = Summarize(arm, fp16, &Judgement::right_per_byte);
  }
  return results;
}

void PrintAccuracy(absl::Span<const AccuracyResult> results) {
  if (results.empty()) return;
  const AccuracyResult& first = results.front();
  std::cout << absl::StrFormat("%s: %d items, up to %d tokens\n", first.task, first.items,
                               first.context);
  std::vector<std::string> header = {"arm", "true bits", "packed", "accuracy % [95 %]", "to FP16"};
  if (first.accuracy_norm.has_value()) {
    header.insert(header.end(), {"per byte % [95 %]", "to FP16"});
  }
  Table table(header);
  for (const AccuracyResult& r : results) {
    std::vector<std::string> row = {r.arm.name, absl::StrFormat("%.3f", r.footprint.true_bits()),
                                    PackedBitsText(r.footprint), Percent(r.accuracy),
                                    Significance(r.accuracy)};
    if (r.accuracy_norm.has_value()) {
      row.insert(row.end(), {Percent(*r.accuracy_norm), Significance(*r.accuracy_norm)});
    }
    table.AddRow(row);
  }
  std::cout << table.ToString() << std::endl;
}

std::string PlotAccuracy(absl::Span<const AccuracyResult> results) {
  std::vector<PlotPanel> panels;
  for (const AccuracyResult& result : results) {
    const Accuracy& accuracy = result.accuracy_norm.value_or(result.accuracy);
    if (panels.empty() || panels.back().title != result.task) {
      panels.push_back({.title = result.task,
                        .x_label = "true bits per element",
                        .y_label = result.accuracy_norm.has_value()
                                       ? "accuracy by likelihood per byte (%)"
                                       : "accuracy (%)"});
    }
    if (IsReference(result.arm)) {
      panels.back().reference = 100 * accuracy.share;
      panels.back().reference_label = absl::StrFormat("FP16: %.1f", 100 * accuracy.share);
      continue;
    }
    const ArmLabel label = LabelOf(result.arm);
    panels.back().points.push_back({.series = label.family,
                                    .label = label.label,
                                    .x = result.footprint.true_bits(),
                                    .y = 100 * accuracy.share,
                                    .low = 100 * accuracy.ci95.low,
                                    .high = 100 * accuracy.ci95.high});
  }
  return RenderSvg("Accuracy against the bits held", panels);
}

}  // namespace whit::eval
