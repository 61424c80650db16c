// whit-eval: the command line.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/eval/accuracy.h"
#include "tests/eval/arms.h"
#include "tests/eval/kld.h"
#include "tests/eval/loaded_model.h"
#include "tests/eval/needle.h"
#include "tests/eval/perplexity.h"
#include "tests/eval/plot_file.h"
#include "tests/eval/progress.h"
#include "tests/eval/report.h"
#include "tests/eval/tasks.h"
#include "tests/eval/text_chunks.h"

namespace whit::eval {
namespace {

constexpr int kMinContext = 32;
// A run that is interrupted has then finished some sequences, rather than begun all.
constexpr int kDefaultMaxBatch = 8;

constexpr char kDescription[] =
    "whit-eval: what a precision of the KV cache costs in quality.\n"
    "\n"
    "Several arms (KV policies) run side by side over the same tokens, against FP16 keys and\n"
    "values of the same build. Tokens go through the decode path, as if generated one by one:\n"
    "16-bit activations, and a recent ring that tokens leave as they age.\n"
    "`whit-eval MODE --help` explains a mode.";

constexpr char kArmsHelp[] =
    "KV policies, separated by commas: those of whitd's --kv-policy (adaptive:3, static:K4V4); "
    "naive:RUNG, a token's largest element as its scale and no more; oracle:BITS, adaptive that "
    "knows what will matter. Each but fp16 and naive may have a ring of its own, "
    "@TOKENS[:RUNG[:SINK_RUNG]], as in static:K4V4@64:K8V8. Rungs: K2V2, K4V2, K4V4, K8V4, K8V8, "
    "FP16";

// What all modes take.
struct CommonOptions {
  std::string model, policy_file;
  int threads = AvailableCpus();
  int batch = 0;
  std::string json, csv, plot;
};

struct ArmOptions {
  std::vector<std::string> arms = {"fp16,static:K8V8,static:K4V4,static:K2V2"};
  int ring_tokens = -1;
  std::string ring_rung, sink_rung;
};

struct Options {
  CommonOptions common;
  ArmOptions arms;
  std::vector<std::string> texts, tasks;
  std::vector<int> contexts;
  int64_t tokens = 32768;
  int64_t characters = 0;
  int limit = 0, prefix_tokens = 0, trials = 25;
};

struct PlotOptions {
  std::string panels, picture;
};

void AddCommon(CLI::App& mode, CommonOptions& options) {
  mode.add_option("--model", options.model, "GGUF file")->required()->check(CLI::ExistingFile);
  mode.add_option("--threads", options.threads, "Worker threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  mode.add_option(
          "--batch", options.batch,
          "Sequences at once; changes speed and memory, not results. 0: up to 8, as fit 4 GB")
      ->check(CLI::Range(0, ArmRunner::kMaxBatch))
      ->capture_default_str();
  mode.add_option("--json", options.json,
                  "Write results as a JSON array, one object an arm; .jsonl: as JSON Lines");
  mode.add_option("--csv", options.csv, "Write results as CSV, one line an arm");
}

void AddArms(CLI::App& mode, Options& options) {
  mode.add_option("--arms", options.arms.arms, kArmsHelp)->capture_default_str();
  mode.add_option("--kv-policy-file", options.common.policy_file,
                  "What whit-calibrate wrote for this model, found as whitd finds it by default; "
                  "off: none, and keys are quantized without means, several times worse");
  mode.add_option("--ring-tokens", options.arms.ring_tokens,
                  "Newest tokens kept undecided, a multiple of 16; default: each policy's own")
      ->check(CLI::NonNegativeNumber);
  mode.add_option("--ring-rung", options.arms.ring_rung, "Their rung; default: each policy's own");
  mode.add_option("--sink-rung", options.arms.sink_rung,
                  "Rung of the first 16 tokens; default: each policy's own");
  mode.add_option("--plot", options.common.plot, "Write a picture as SVG");
}

CLI::App& AddKld(CLI::App& app, Options& options) {
  CLI::App& mode = *app.add_subcommand(
      "kld", "KL divergence of next-token distributions, top-1 agreement and perplexity on text");
  mode.footer(
      "Example:\n"
      "  whit-eval kld --model M.gguf --text wiki.txt book.txt \\\n"
      "    --contexts 512,2048 --arms static:K4V4,static:K2V2,random:K2V2=1,K4V4=1 --plot k.svg\n"
      "\n"
      "Intervals: 95 %, from drawing whole chunks with replacement. True bits: all bytes held "
      "over\n"
      "K and V elements, at the end of a chunk, and averaged over its time. Packed bits: codes "
      "and\n"
      "scales of decided tokens alone.");
  AddCommon(mode, options.common);
  AddArms(mode, options);
  mode.add_option("--text", options.texts, "UTF-8 files")->required()->check(CLI::ExistingFile);
  options.contexts = {512, 2048};
  mode.add_option("--contexts", options.contexts, "Tokens of a chunk, from an empty cache each")
      ->delimiter(',')
      ->capture_default_str();
  mode.add_option("--tokens", options.tokens,
                  "Tokens to run at each context, in chunks spread evenly over the texts")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  return mode;
}

CLI::App& AddTasks(CLI::App& app, Options& options) {
  CLI::App& mode = *app.add_subcommand(
      "tasks", "Accuracy by log-likelihood on multiple choice and on the last word");
  mode.footer(
      "Example:\n"
      "  whit-eval tasks --model M.gguf --task hellaswag=hellaswag.jsonl \\\n"
      "    --task arc_easy=arc_easy.jsonl --arms static:K4V4,static:K2V2 --limit 200\n"
      "\n"
      "p is McNemar's exact test against FP16 on the same items.");
  AddCommon(mode, options.common);
  AddArms(mode, options);
  mode.add_option("--task", options.tasks,
                  "NAME=FILE, JSON Lines; hellaswag, piqa, arc, openbookqa, winogrande or lambada, "
                  "with an ending of your own: arc_easy")
      ->required();
  mode.add_option("--limit", options.limit, "Items of each task, spread evenly; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  mode.add_option("--prefix-tokens", options.prefix_tokens,
                  "Put solved items of the same file before each, up to so many tokens, so that "
                  "the cache has something to hold")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  return mode;
}

CLI::App& AddNeedle(CLI::App& app, Options& options) {
  CLI::App& mode = *app.add_subcommand(
      "needle", "Retrieval of a six-digit number said once in a long text, by greedy decoding");
  mode.footer(
      "Example:\n"
      "  whit-eval needle --model M.gguf --text book.txt --contexts 4096 --trials 50 \\\n"
      "    --arms static:K4V4,static:K2V2");
  AddCommon(mode, options.common);
  AddArms(mode, options);
  mode.add_option("--text", options.texts, "UTF-8 files")->required()->check(CLI::ExistingFile);
  options.contexts = {4096};
  mode.add_option("--contexts", options.contexts, "Tokens of a trial")
      ->delimiter(',')
      ->capture_default_str();
  mode.add_option("--trials", options.trials, "Trials at each context")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  return mode;
}

CLI::App& AddPerplexity(CLI::App& app, Options& options) {
  CLI::App& mode = *app.add_subcommand(
      "perplexity", "Perplexity with FP16 keys and values, for comparison with other software");
  mode.footer(
      "The text is tokenized once and cut into chunks; each is run from an empty cache, with\n"
      "activations of 16 bits (as decoding has them) and of 8 (as prompts have them).");
  AddCommon(mode, options.common);
  mode.add_option("--text", options.texts, "UTF-8 file")
      ->required()
      ->expected(1)
      ->check(CLI::ExistingFile);
  options.contexts = {512};
  mode.add_option("--context", options.contexts, "Tokens of a chunk")
      ->expected(1)
      ->capture_default_str();
  mode.add_option("--characters", options.characters, "Of the text's beginning; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  return mode;
}

CLI::App& AddPlot(CLI::App& app, PlotOptions& options) {
  CLI::App& mode = *app.add_subcommand("plot", "Draws figures that were measured before");
  mode.footer(
      "The file says what to draw:\n"
      "  {\"title\": T, \"panels\": [{\"title\": T, \"x_label\": T, \"y_label\": T,\n"
      "    \"log_y\": false, \"reference\": Y, \"reference_label\": T, \"points\": [\n"
      "    {\"series\": T, \"label\": T, \"x\": X, \"y\": Y, \"low\": Y, \"high\": Y}]}]}\n"
      "Only a point's x and y must be there.");
  mode.add_option("--panels", options.panels, "JSON file")->required()->check(CLI::ExistingFile);
  mode.add_option("--plot", options.picture, "Where to write the picture as SVG")->required();
  return mode;
}

absl::StatusOr<std::vector<Arm>> MakeArms(const ArmOptions& options, const LoadedModel& loaded) {
  RingOverrides overrides;
  if (options.ring_tokens >= 0) overrides.tokens = options.ring_tokens;
  for (const auto& [name, rung] : {std::pair{&options.ring_rung, &overrides.rung},
                                   std::pair{&options.sink_rung, &overrides.sink_rung}}) {
    if (name->empty()) continue;
    const absl::StatusOr<Rung> parsed = ParseRung(*name);
    if (!parsed.ok()) return parsed.status();
    *rung = *parsed;
  }
  std::string list;
  for (const std::string& part : options.arms) absl::StrAppend(&list, part, ",");
  return ParseArms(list, overrides, loaded.policy_file ? &loaded.policy_file->file : nullptr);
}

absl::Status CheckContexts(const std::vector<int>& contexts, const ModelConfig& config) {
  for (int context : contexts) {
    if (context >= kMinContext && context <= config.context_length) continue;
    return absl::InvalidArgumentError(absl::StrCat("a context of ", context,
                                                   " tokens; this model takes ", kMinContext,
                                                   " to ", config.context_length));
  }
  return absl::OkStatus();
}

// Before a long measurement rather than after it.
absl::Status CheckWritable(const CommonOptions& options) {
  for (const std::string& path : {options.json, options.csv, options.plot}) {
    if (path.empty() || std::ofstream(path, std::ios::app)) continue;
    return absl::PermissionDeniedError(absl::StrCat(path, ": cannot be written"));
  }
  return absl::OkStatus();
}

std::string PolicyPath(const LoadedModel& loaded) {
  return loaded.policy_file ? loaded.policy_file->path : "none";
}

template <typename Result>
absl::Status Save(const CommonOptions& options, const LoadedModel& loaded,
                  const std::vector<Result>& results, const std::string& picture) {
  std::vector<ResultObject> objects;
  for (const Result& result : results) {
    objects.push_back(result.ToJson());
    objects.back()["model"] = loaded.model->config().name;
    objects.back()["policy_file"] = PolicyPath(loaded);
  }
  absl::Status status;
  if (!options.json.empty()) status.Update(WriteJson(options.json, objects));
  if (!options.csv.empty()) status.Update(WriteCsv(options.csv, objects));
  if (!options.plot.empty()) status.Update(WriteFile(options.plot, picture));
  return status;
}

int BatchFor(const Options& options, const LoadedModel& loaded, size_t arms, int tokens) {
  if (options.common.batch > 0) return options.common.batch;
  return std::min(ArmRunner::DefaultBatch(loaded.model->config(), arms, tokens), kDefaultMaxBatch);
}

absl::Status RunKld(const Options& options, const LoadedModel& loaded,
                    const std::vector<Arm>& arms) {
  const auto texts = TokenizeFiles(options.texts, *loaded.tokenizer);
  if (!texts.ok()) return texts.status();
  const int longest = *std::max_element(options.contexts.begin(), options.contexts.end());
  const int batch = BatchFor(options, loaded, arms.size(), longest);
  const auto results =
      MeasureKld(loaded, arms, *texts,
                 {.contexts = options.contexts, .tokens = options.tokens, .batch = batch});
  if (!results.ok()) return results.status();
  return Save(options.common, loaded, *results, PlotKld(*results));
}

// A task's name and its items.
using NamedItems = std::pair<std::string, std::vector<ScoredItem>>;

absl::StatusOr<std::vector<NamedItems>> ReadTasks(const Options& options,
                                                  const LoadedModel& loaded) {
  std::vector<NamedItems> tasks;
  for (const std::string& task : options.tasks) {
    const size_t equals = task.find('=');
    if (equals == task.npos) {
      return absl::InvalidArgumentError(absl::StrCat("--task=", task, " must be NAME=FILE"));
    }
    const std::string name = task.substr(0, equals), path = task.substr(equals + 1);
    const absl::StatusOr<std::string> text = ReadFile(path);
    if (!text.ok()) return text.status();
    const absl::StatusOr<std::vector<TaskItem>> items = ParseTask(name, *text);
    if (!items.ok()) return Annotate(items.status(), path);
    absl::StatusOr<std::vector<ScoredItem>> scored =
        MakeScoredItems(*items, *loaded.tokenizer,
                        {.limit = options.limit,
                         .prefix_tokens = options.prefix_tokens,
                         .context_length = loaded.model->config().context_length});
    if (!scored.ok()) return Annotate(scored.status(), path);
    tasks.emplace_back(name, *std::move(scored));
  }
  return tasks;
}

absl::StatusOr<std::vector<NamedItems>> MakeNeedleTasks(const Options& options,
                                                        const LoadedModel& loaded) {
  const auto texts = TokenizeFiles(options.texts, *loaded.tokenizer);
  if (!texts.ok()) return texts.status();
  std::vector<int32_t> haystack;
  for (const std::vector<int32_t>& text : *texts) {
    haystack.insert(haystack.end(), text.begin(), text.end());
  }
  std::vector<NamedItems> tasks;
  for (int context : options.contexts) {
    absl::StatusOr<std::vector<ScoredItem>> needles =
        MakeNeedles(haystack, context, options.trials, *loaded.tokenizer);
    if (!needles.ok()) return needles.status();
    tasks.emplace_back(absl::StrCat("needle_", context), *std::move(needles));
  }
  return tasks;
}

absl::Status RunAccuracy(const Options& options, const LoadedModel& loaded,
                         const std::vector<Arm>& arms,
                         const absl::StatusOr<std::vector<NamedItems>>& tasks) {
  if (!tasks.ok()) return tasks.status();
  std::vector<AccuracyResult> all;
  for (const auto& [name, items] : *tasks) {
    if (Interrupted()) break;
    size_t longest = 0;
    for (const ScoredItem& item : items) {
      for (const Sequence& choice : item.choices) longest = std::max(longest, choice.tokens.size());
    }
    const int batch = BatchFor(options, loaded, arms.size(), static_cast<int>(longest));
    const auto results = MeasureAccuracy(loaded, arms, name, items, batch);
    if (!results.ok()) return results.status();
    PrintAccuracy(*results);
    all.insert(all.end(), results->begin(), results->end());
  }
  return Save(options.common, loaded, all, PlotAccuracy(all));
}

absl::Status RunPerplexity(const Options& options, const LoadedModel& loaded) {
  const absl::StatusOr<std::string> file = ReadFile(options.texts.front());
  if (!file.ok()) return file.status();
  const std::string_view text =
      options.characters > 0 ? FirstCharacters(*file, options.characters) : *file;
  const auto ids = loaded.tokenizer->Encode(text, /*parse_special=*/false);
  if (!ids.ok()) return Annotate(ids.status(), options.texts.front());
  const int context = options.contexts.front();
  const auto results =
      MeasurePerplexity(loaded, *ids, context, BatchFor(options, loaded, 2, context));
  if (!results.ok()) return results.status();
  return Save(options.common, loaded, *results, "");
}

absl::Status Run(const std::string& mode, const Options& options) {
  if (absl::Status status = CheckWritable(options.common); !status.ok()) return status;
  const absl::StatusOr<LoadedModel> loaded =
      LoadModel(options.common.model, options.common.policy_file, options.common.threads);
  if (!loaded.ok()) return loaded.status();
  if (mode != "perplexity") std::cerr << "policy file: " << PolicyPath(*loaded) << "\n";
  const absl::StatusOr<std::vector<Arm>> arms = MakeArms(options.arms, *loaded);
  if (!arms.ok()) return arms.status();
  if (mode != "tasks") {
    absl::Status status = CheckContexts(options.contexts, loaded->model->config());
    if (!status.ok()) return status;
  }
  CatchInterrupt();
  if (mode == "kld") return RunKld(options, *loaded, *arms);
  if (mode == "tasks") return RunAccuracy(options, *loaded, *arms, ReadTasks(options, *loaded));
  if (mode == "needle") {
    return RunAccuracy(options, *loaded, *arms, MakeNeedleTasks(options, *loaded));
  }
  return RunPerplexity(options, *loaded);
}

absl::Status Plot(const PlotOptions& options) {
  const absl::StatusOr<std::string> json = ReadFile(options.panels);
  if (!json.ok()) return json.status();
  const absl::StatusOr<std::string> picture = RenderJson(*json);
  if (!picture.ok()) return Annotate(picture.status(), options.panels);
  return WriteFile(options.picture, *picture);
}

}  // namespace
}  // namespace whit::eval

int main(int argc, char** argv) {
  using namespace whit::eval;
  CLI::App app(kDescription);
  app.require_subcommand(1);
  // A mode's defaults are its own, so each has its own options.
  Options kld, tasks, needle, perplexity;
  const std::pair<CLI::App*, Options*> modes[] = {{&AddKld(app, kld), &kld},
                                                  {&AddTasks(app, tasks), &tasks},
                                                  {&AddNeedle(app, needle), &needle},
                                                  {&AddPerplexity(app, perplexity), &perplexity}};
  PlotOptions plot;
  const CLI::App& plot_mode = AddPlot(app, plot);
  CLI11_PARSE(app, argc, argv);
  absl::Status status;
  if (plot_mode.parsed()) status = Plot(plot);
  for (const auto& [mode, options] : modes) {
    if (mode->parsed()) status = Run(mode->get_name(), *options);
  }
  if (!status.ok()) {
    std::cerr << "whit-eval: " << status.message() << "\n";
    return 1;
  }
  return Interrupted() ? 130 : 0;
}
