// A model with what is needed to run texts through it.
#ifndef WHIT_TESTS_EVAL_LOADED_MODEL_H_
#define WHIT_TESTS_EVAL_LOADED_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/policy_lookup.h"
#include "runtime/model/model.h"
#include "runtime/ops/thread_pool.h"
#include "runtime/text/tokenizer.h"

namespace whit::eval {

struct LoadedModel {
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<const FoundPolicy> policy_file;  // null: none
};

// `policy_file` as whitd's flag of that name: empty for the one that is found, "off" for none.
// Errors name the file.
absl::StatusOr<LoadedModel> LoadModel(const std::string& path, const std::string& policy_file,
                                      int num_threads);

// The whole file. NOT_FOUND names it.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// The status with `context` and a colon before its message.
absl::Status Annotate(const absl::Status& status, const std::string& context);

}  // namespace whit::eval

#endif  // WHIT_TESTS_EVAL_LOADED_MODEL_H_
