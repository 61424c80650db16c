#include "tests/eval/kld.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/eval/logit_comparison.h"
#include "tests/eval/progress.h"
#include "tests/eval/svg_plot.h"
#include "tests/eval/text_chunks.h"

namespace whit::eval {
namespace {

// What is kept of an arm: a number for every position, and sums for every chunk.
struct Accumulator {
  explicit Accumulator(size_t chunks) : kld_of_chunk(chunks), delta_of_chunk(chunks) {}
  std::vector<float> klds;
  std::vector<Block> kld_of_chunk, delta_of_chunk;  // delta: of -ln p(target), against FP16
  int64_t agreements = 0;
};

// Compares each arm's rows with the reference's of the same slice, which it keeps a copy of.
class Comparison {
 public:
  Comparison(size_t arms, size_t chunks, size_t vocab_size, ThreadPool& threads)
      : vocab_size_(vocab_size), threads_(threads), arms_(arms, Accumulator(chunks)) {}

  void Add(int arm, absl::Span<const ScoredRow> rows) {
    if (arm == 0) KeepReference(rows);
    struct Measured {
      double kld, delta;
      bool agrees;
    };
    std::vector<Measured> measured(rows.size());
    threads_.ParallelFor(rows.size(), 1, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        const LogitRow& reference = reference_[i];
        const LogitRow row = arm == 0 ? reference : MakeLogitRow(rows[i].logits, vocab_size_);
        measured[i] = {
            .kld = KlDivergence(reference, row),
            .delta = reference.LogProbability(rows[i].target) - row.LogProbability(rows[i].target),
            .agrees = row.arg_max == reference.arg_max};
      }
    });
    Accumulator& sums = arms_[arm];
    for (size_t i = 0; i < rows.size(); ++i) {
      sums.klds.push_back(static_cast<float>(measured[i].kld));
      AddTo(sums.kld_of_chunk[rows[i].sequence], measured[i].kld);
      AddTo(sums.delta_of_chunk[rows[i].sequence], measured[i].delta);
      sums.agreements += measured[i].agrees ? 1 : 0;
    }
  }

  int64_t tokens() const { return reference_nll_.count; }
  double reference_ln_ppl() const { return Mean({reference_nll_}); }
  double MeanKld(size_t arm) const { return Mean(arms_[arm].kld_of_chunk); }
  const Accumulator& arm(size_t arm) const { return arms_[arm]; }

 private:
  static void AddTo(Block& block, double value) {
    block.sum += value;
    ++block.count;
  }

  void KeepReference(absl::Span<const ScoredRow> rows) {
    logits_.resize(std::max(logits_.size(), rows.size() * vocab_size_));
    reference_.resize(rows.size());
    threads_.ParallelFor(rows.size(), 1, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        float* copy = logits_.data() + i * vocab_size_;
        std::copy_n(rows[i].logits, vocab_size_, copy);
        reference_[i] = MakeLogitRow(copy, vocab_size_);
      }
    });
    for (size_t i = 0; i < rows.size(); ++i) {
      AddTo(reference_nll_, -reference_[i].LogProbability(rows[i].target));
    }
  }

  const size_t vocab_size_;
  ThreadPool& threads_;
  std::vector<Accumulator> arms_;
  // Of the slice under way.
  std::vector<float> logits_;  // [row][vocab_size]
  std::vector<LogitRow> reference_;
  Block reference_nll_;
};

// The blocks that anything was measured of: all but for an interrupted run.
std::vector<Block> Begun(std::vector<Block> blocks) {
  blocks.erase(std::remove_if(blocks.begin(), blocks.end(),
                              [](const Block& block) { return block.count == 0; }),
               blocks.end());
  return blocks;
}

std::vector<double> Means(const std::vector<Block>& blocks) {
  std::vector<double> means;
  for (const Block& block : blocks) means.push_back(Mean({block}));
  return means;
}

void Summarize(const Accumulator& sums, const Comparison& comparison, KldResult& result) {
  const std::vector<Block> klds = Begun(sums.kld_of_chunk), deltas = Begun(sums.delta_of_chunk);
  result.tokens = comparison.tokens();
  result.mean = Mean(klds);
  result.p99 = Quantile(sums.klds, 0.99);
  result.p999 = Quantile(sums.klds, 0.999);
  result.top1_agreement = static_cast<double>(sums.agreements) / static_cast<double>(result.tokens);
  result.delta_ln_ppl = Mean(deltas);
  result.mean_ci95 = BootstrapMean(klds);
  result.delta_ci95 = BootstrapMean(deltas);
  result.reference_perplexity = std::exp(comparison.reference_ln_ppl());
  result.perplexity = std::exp(comparison.reference_ln_ppl() + result.delta_ln_ppl);
  result.chunk_kld = Means(klds);
  result.chunk_delta_ln_ppl = Means(deltas);
}

void PrintTable(absl::Span<const KldResult> results) {
  const KldResult& reference = results.front();
  std::cout << absl::StrFormat("Context %d: %d positions in %d chunks, FP16 perplexity %.3f\n",
                               reference.context, reference.tokens, reference.chunk_kld.size(),
                               reference.reference_perplexity);
  Table table({"arm", "true bits", "time-avg", "packed", "KLD [95 %]", "99 %", "99.9 %", "top-1",
               "Δ ln PPL [95 %]"});
  for (const KldResult& r : results) {
    table.AddRow({r.arm.name, absl::StrFormat("%.3f", r.footprint.true_bits()),
                  absl::StrFormat("%.3f", r.footprint.true_bits_time_averaged()),
                  PackedBitsText(r.footprint), WithInterval("%.5f", r.mean, r.mean_ci95),
                  absl::StrFormat("%.4f", r.p99), absl::StrFormat("%.4f", r.p999),
                  absl::StrFormat("%.4f", r.top1_agreement),
                  WithInterval("%+.5f", r.delta_ln_ppl, r.delta_ci95)});
  }
  std::cout << table.ToString() << std::endl;
}

absl::StatusOr<std::vector<KldResult>> MeasureContext(const LoadedModel& loaded,
                                                      const std::vector<Arm>& arms,
                                                      absl::Span<const Sequence> chunks,
                                                      int context, int batch) {
  ArmRunner runner(*loaded.model, arms);
  Comparison comparison(arms.size(), chunks.size(), loaded.model->config().vocab_size,
                        *loaded.threads);
  std::vector<std::vector<TokenKind>> kinds;  // [chunk]
  for (const Sequence& chunk : chunks) kinds.push_back(KindsOf(chunk.tokens, *loaded.tokenizer));
  std::vector<KldResult> results;
  for (const Arm& arm : arms) {
    results.push_back(
        {.arm = arm, .context = context, .bits = BitAllocation(loaded.model->config())});
  }
  Progress progress(absl::StrCat("context ", context),
                    static_cast<int64_t>(chunks.size()) * context);
  const absl::Status status = runner.Run(
      chunks, batch, [&](int arm, absl::Span<const ScoredRow> rows) { comparison.Add(arm, rows); },
      [&](int64_t done) {
        progress.Update(done, absl::StrFormat("%s: KLD %.5f", arms.back().name,
                                              comparison.MeanKld(arms.size() - 1)));
        return !Interrupted();
      },
      [&](const EndedSequence& ended) {
        results[ended.arm].chunk_true_bits.push_back(ended.true_bits);
        if (!IsReference(arms[ended.arm])) {
          results[ended.arm].bits.Add(ended, kinds[ended.sequence]);
        }
      });
  if (!status.ok()) return status;
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    results[arm].footprint = runner.footprints()[arm];
    Summarize(comparison.arm(arm), comparison, results[arm]);
  }
  return results;
}

}  // namespace

ResultObject KldResult::ToJson() const {
  ResultObject object = DescribeArm(arm, footprint);
  object["context"] = context;
  object["tokens"] = tokens;
  object["kld_mean"] = mean;
  object["kld_p99"] = p99;
  object["kld_p999"] = p999;
  object["top1_agreement"] = top1_agreement;
  object["delta_ln_ppl"] = delta_ln_ppl;
  object["ppl"] = perplexity;
  object["fp16_ppl"] = reference_perplexity;
  object["ci95"] = {{"kld_mean", eval::ToJson(mean_ci95)},
                    {"delta_ln_ppl", eval::ToJson(delta_ci95)}};
  object["chunk_kld_mean"] = chunk_kld;
  object["chunk_delta_ln_ppl"] = chunk_delta_ln_ppl;
  object["chunk_true_bits"] = chunk_true_bits;
  if (!bits.empty()) object["bits"] = bits.ToJson();
  return object;
}

absl::StatusOr<std::vector<KldResult>> MeasureKld(const LoadedModel& loaded,
                                                  const std::vector<Arm>& arms,
                                                  absl::Span<const std::vector<int32_t>> texts,
                                                  const KldOptions& options) {
  std::vector<std::vector<Sequence>> chunks;  // of each context; short texts are refused at once
  for (int context : options.contexts) {
    absl::StatusOr<std::vector<Sequence>> cut =
        CutChunks(texts, context, options.tokens, *loaded.tokenizer);
    if (!cut.ok()) return cut.status();
    chunks.push_back(*std::move(cut));
  }
  std::vector<KldResult> results;
  for (size_t i = 0; i < chunks.size() && !Interrupted(); ++i) {
    absl::StatusOr<std::vector<KldResult>> measured =
        MeasureContext(loaded, arms, chunks[i], options.contexts[i], options.batch);
    if (!measured.ok()) return measured.status();
    PrintTable(*measured);
    std::move(measured->begin(), measured->end(), std::back_inserter(results));
  }
  return results;
}

std::string PlotKld(absl::Span<const KldResult> results) {
  std::vector<PlotPanel> panels;
  for (const KldResult& result : results) {
    const std::string title = absl::StrCat("context ", result.context);
    if (panels.empty() || panels.back().title != title) {
      panels.push_back({.title = title,
                        .x_label = "true bits per element",
                        .y_label = "KL divergence from FP16 (nats)",
                        .log_y = true});
    }
    if (IsReference(result.arm)) continue;  // 0, which has no logarithm
    const ArmLabel label = LabelOf(result.arm);
    panels.back().points.push_back({.series = label.family,
                                    .label = label.label,
                                    .x = result.footprint.true_bits(),
                                    .y = result.mean,
                                    .low = result.mean_ci95.low,
                                    .high = result.mean_ci95.high});
  }
  return RenderSvg("KL divergence against the bits held", panels);
}

}  // namespace whit::eval
