// whit-pressure: what a step costs while pages are demoted beside it.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/engine/stepped_engine.h"
#include "runtime/model/gguf.h"
#include "tests/bench/median.h"

namespace whit {
namespace {

constexpr char kDescription[] =
    R"(Measures steps of the engine in which streams decode, with and without demotion beside them.

All streams together outgrow the pool while they decode, so that the pressure loop lowers pages step by
step, pauses, and begins again. Steps are compared as they came, in one run.)";

struct Options {
  std::string model_path;
  std::string policy = "random:K4V4=1,K8V8=1";
  int streams = 16, prompt_tokens = 768, new_tokens = 512, threads = 2;
};

int64_t Demotions(const EngineSnapshot& snapshot) {
  int64_t pages = 0;
  for (const auto& row : snapshot.demotions_total) {
    for (const int64_t count : row) pages += count;
  }
  return pages;
}

// As much as nine tenths of what the streams come to hold if nobody lowers it.
absl::StatusOr<size_t> PoolBytes(const Options& options, const PrecisionPolicySpec& policy,
                                 const ModelConfig& model) {
  const std::vector<Rung> rungs = PossibleRungs(policy);
  if (rungs.size() == 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s gives a single rung: there is nothing to lower", policy.ToString()));
  }
  double page_bytes = 0;
  for (const Rung rung : rungs) {
    page_bytes += static_cast<double>(PageBytes(rung, model.head_dim)) / rungs.size();
  }
  const double pages = 1.0 * options.streams * (options.prompt_tokens + options.new_tokens) /
                       kTileTokens * model.num_layers * model.num_kv_heads;
  return static_cast<size_t>(0.9 * pages * page_bytes);
}

absl::Status Measure(const Options& options) {
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(options.model_path);
  if (!file.ok()) return file.status();
  ThreadPool threads(options.threads);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**file, threads);
  if (!model.ok()) return model.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(**file);
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<PrecisionPolicySpec> policy = ParsePrecisionPolicy(options.policy);
  if (!policy.ok()) return policy.status();
  absl::StatusOr<size_t> pool_bytes = PoolBytes(options, *policy, (*model)->config());
  if (!pool_bytes.ok()) return pool_bytes.status();

  double last_step_us = 0;
  int last_generated = 0, last_prompt = 0;
  absl::StatusOr<std::unique_ptr<SteppedEngine>> engine =
      SteppedEngine::Create({.kv_cache_bytes = *pool_bytes,
                             .max_running_requests = options.streams,
                             .max_cached_prefixes = 0,
                             .kv_policy = *policy,
                             .kv_floor = Rung::kK2V2},
                            **model, **tokenizer,
                            {.on_step =
                                 [&](const StepReport& report) {
                                   last_step_us = absl::ToDoubleMicroseconds(report.duration);
                                   last_generated = report.generated_tokens;
                                   last_prompt = report.prompt_tokens;
                                 },
                             .on_completion = {}},
                            absl::Now);
  if (!engine.ok()) return engine.status();
  for (int i = 0; i < options.streams; ++i) {
    if (absl::Status status = (*engine)->TakeTicket(); !status.ok()) return status;
    Request request = {.sampling = {.seed = 1},
                       .max_new_tokens = options.new_tokens,
                       .ignore_eos = true,
                       .kv_policy = *policy};
    for (int t = 0; t < options.prompt_tokens; ++t) {
      request.prompt.push_back((1000 + 31 * i + 7 * t) % (*model)->config().vocab_size);
    }
    const absl::StatusOr<uint64_t> number =
        (*engine)->Submit(std::move(request), std::make_shared<TokenSink>([] {}));
    if (!number.ok()) return number.status();
  }

  std::vector<double> calm, demoting;
  int64_t pages = 0, before = 0;
  while ((*engine)->queue().state().running > 0) {
    (*engine)->Step();
    const int64_t demotions = Demotions((*engine)->snapshot());
    if (last_prompt == 0 && last_generated == options.streams) {
      (demotions > before ? demoting : calm).push_back(last_step_us);
      pages += demotions - before;
    }
    before = demotions;
  }
  if (calm.empty() || demoting.empty()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%d steps without demotion and %d with it: nothing to compare", calm.size(),
                        demoting.size()));
  }
  const double calm_us = Median(calm), demoting_us = Median(demoting);
  absl::PrintF("steps of %d streams without demotion: %d, median %.2f ms\n", options.streams,
               calm.size(), calm_us / 1000);
  absl::PrintF("with demotion: %d, median %.2f ms, %.0f pages each\n", demoting.size(),
               demoting_us / 1000, static_cast<double>(pages) / demoting.size());
  absl::PrintF("ratio %.3f\n", demoting_us / calm_us);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app(kDescription);
  app.add_option("--model", options.model_path, "GGUF file")->required()->envname("WHIT_MODEL");
  app.add_option("--kv-policy", options.policy, "one that gives several rungs")
      ->capture_default_str();
  const auto count = [&](const char* flag, int& value, int high, const char* description) {
    app.add_option(flag, value, description)->check(CLI::Range(1, high))->capture_default_str();
  };
  count("--streams", options.streams, 64, "that decode together");
  count("--prompt-tokens", options.prompt_tokens, 1 << 20, "of each stream");
  count("--new-tokens", options.new_tokens, 1 << 20, "of each stream");
  count("--threads", options.threads, 1024, "threads");
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = Measure(options); !status.ok()) {
    std::fprintf(stderr, "whit-pressure: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace whit

int main(int argc, char** argv) { return whit::Main(argc, argv); }
