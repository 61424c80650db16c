// ServingModel: a loaded model with all that serves it.
#ifndef WHIT_SERVER_SERVING_MODEL_H_
#define WHIT_SERVER_SERVING_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "controller/policy_file.h"
#include "runtime/engine/engine.h"
#include "runtime/model/model.h"
#include "runtime/ops/thread_pool.h"
#include "runtime/text/chat_format.h"
#include "runtime/text/tokenizer.h"
#include "server/logging.h"
#include "server/options.h"

namespace whit {

// Threads: immutable after Load but for the engine, which any thread may call.
class ServingModel {
 public:
  // Maps and packs the model and starts the engine. The message of an error names the file.
  static absl::StatusOr<std::unique_ptr<ServingModel>> Load(const ServerOptions& options,
                                                            EngineObserver observer,
                                                            const Logger& logger);

  const ModelConfig& config() const { return model_->config(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // UNIMPLEMENTED if the model's chat template is of no known family.
  const absl::StatusOr<ChatFormat>& chat_format() const { return chat_format_; }
  Engine& engine() const { return *engine_; }
  uint64_t file_bytes() const { return file_bytes_; }
  // The most text one token stands for: n bytes are at least n / max_token_bytes() tokens.
  size_t max_token_bytes() const { return max_token_bytes_; }

 private:
  ServingModel() = default;

  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Model> model_;
  std::optional<PolicyFile> policy_file_;
  absl::StatusOr<ChatFormat> chat_format_;
  uint64_t file_bytes_ = 0;
  size_t max_token_bytes_ = 1;
  std::unique_ptr<Engine> engine_;  // last: its thread uses all of the above
};

}  // namespace whit

#endif  // WHIT_SERVER_SERVING_MODEL_H_
