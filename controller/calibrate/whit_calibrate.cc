// whit-calibrate: measures a model on text and writes its policy file.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/calibrate/calibration.h"
#include "controller/calibrate/calibration_text.h"
#include "controller/calibrate/progress_bar.h"
#include "controller/policy_file.h"
#include "controller/policy_lookup.h"
#include "runtime/model/gguf.h"
#include "runtime/model/model.h"
#include "runtime/ops/thread_pool.h"
#include "runtime/text/tokenizer.h"

namespace whit {
namespace {

constexpr char kDescription[] =
    R"(Measures a model on text and learns from it which keys and values deserve how many bits. Writes its
policy file, with which whitd quantizes at a smaller error and decides by what matters.)";

constexpr char kFooter[] = R"(
Text: UTF-8 files of the kinds of text that the model will serve, some hundred kilobytes each; prose,
code, chats, the users' languages. As much is drawn from each of them. A file whose name ends in
.jsonl holds chats, one a line:
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
They are written out in the model's own chat format.

Part of the text is held out; it tells how well what was learned holds for other text.
whitd finds the file beside the model by itself, or takes it by --kv-policy-file. The file belongs to
this model only and is small. The same model, text, seed and kind of CPU give the same file, byte for
byte.

Example:
  whit-calibrate --model=smollm2.gguf --text wiki.txt code.txt chats.jsonl
)";

constexpr int kExitFailed = 1, kExitUsage = 2;

struct Options {
  std::string model_path;
  std::vector<std::string> text_paths;
  std::string out_path;  // empty: beside the model
  int threads = AvailableCpus();
  CalibrationOptions calibration;
};

void DefineFlags(CLI::App& app, Options& options) {
  app.add_option("--model", options.model_path, "GGUF file of a llama-architecture model")
      ->type_name("FILE")
      ->required();
  app.add_option("--text", options.text_paths, "files of text to calibrate on")
      ->type_name("FILE")
      ->required();
  app.add_option("--out", options.out_path,
                 "policy file to write; the default is the model's path with .whitpolicy for .gguf")
      ->type_name("FILE");
  CalibrationOptions& calibration = options.calibration;
  app.add_option("--tokens", calibration.tokens_of_context,
                 "tokens to learn from in windows of each length; more take longer")
      ->type_name("N")
      ->check(CLI::Range(kMinMixedWindowTokens, 1 << 28).description(""))
      ->capture_default_str();
  app.add_option("--contexts", calibration.contexts,
                 "lengths of windows, in tokens; those beyond the model's context length or the "
                 "length of the texts are left out")
      ->type_name("N")
      ->check(CLI::Range(kMinMixedWindowTokens, 1 << 20).description(""))
      ->capture_default_str();
  app.add_option("--training-steps", calibration.training_steps, "steps of training")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20).description(""))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads that compute")
      ->type_name("N")
      ->check(CLI::Range(1, 1024).description(""))
      ->capture_default_str();
  app.add_option("--seed", calibration.seed,
                 "which stretches of the text are drawn, and the first weights of networks")
      ->type_name("N")
      ->capture_default_str();
}

// So that minutes of work are not lost in the end.
absl::Status CheckWritable(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a folder, not a file to write"));
  }
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  if (access(folder.c_str(), W_OK) == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(path, ": cannot write there: ", std::strerror(errno)));
}

struct LoadedModel {
  ModelIdentity identity;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
};

absl::StatusOr<LoadedModel> LoadModel(const std::string& path, ThreadPool& pool) {
  const auto failed = [&](const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  };
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(**file);
  if (!tokenizer.ok()) return failed(tokenizer.status());
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**file, pool);
  if (!model.ok()) return failed(model.status());
  return LoadedModel{.identity = IdentityOf(**file, (*model)->config()),
                     .model = *std::move(model),
                     .tokenizer = *std::move(tokenizer)};
}

// Shows each phase as a bar of its own.
class PhaseBar {
 public:
  void Update(const CalibrationPhase& phase, size_t done, size_t total) {
    if (!bar_.has_value() || phase.name != phase_) {
      bar_.reset();
      phase_ = phase.name;
      bar_.emplace(phase.name, phase.unit, total);
    }
    bar_->Update(done);
  }

 private:
  std::string phase_;
  std::optional<ProgressBar> bar_;
};

absl::Status Run(Options options) {
  if (options.out_path.empty()) options.out_path = PolicyPathBeside(options.model_path);
  if (absl::Status status = CheckWritable(options.out_path); !status.ok()) return status;
  ThreadPool pool(options.threads);
  absl::StatusOr<LoadedModel> loaded = LoadModel(options.model_path, pool);
  if (!loaded.ok()) return loaded.status();
  const Tokenizer& tokenizer = *loaded->tokenizer;
  std::vector<CalibrationText> texts;
  for (const std::string& path : options.text_paths) {
    absl::StatusOr<CalibrationText> text = ReadCalibrationText(path, tokenizer);
    if (!text.ok()) return text.status();
    texts.push_back(*std::move(text));
  }
  options.calibration.bos_id = tokenizer.add_bos() ? tokenizer.bos_id() : -1;
  std::sort(options.calibration.contexts.begin(), options.calibration.contexts.end());
  std::optional<PhaseBar> bar(std::in_place);
  const absl::StatusOr<PolicyFile> file =
      Calibrate(*loaded->model, loaded->identity, texts, options.calibration,
                [&](const CalibrationPhase& phase, size_t done, size_t total) {
                  bar->Update(phase, done, total);
                });
  bar.reset();
  if (!file.ok()) return file.status();

  if (absl::Status status = WritePolicyFile(options.out_path, *file); !status.ok()) return status;
  for (const PolicyFile::Note& note : file->notes) {
    std::printf("%-35s %s\n", note.name.c_str(), note.value.c_str());
  }
  std::printf("wrote %s, %d bytes\n", options.out_path.c_str(),
              static_cast<int>(SerializePolicyFile(*file).size()));
  return absl::OkStatus();
}

}  // namespace
}  // namespace whit

int main(int argc, char** argv) {
  whit::Options options;
  CLI::App app(whit::kDescription, "whit-calibrate");
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.get_formatter()->column_width(30);
  app.footer(whit::kFooter);
  whit::DefineFlags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : whit::kExitUsage;
  }
  const absl::Status status = whit::Run(std::move(options));
  if (status.ok()) return 0;
  std::fprintf(stderr, "whit-calibrate: %s\n", std::string(status.message()).c_str());
  return whit::kExitFailed;
}
