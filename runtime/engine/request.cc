#include "runtime/engine/request.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"
#include "runtime/model/model_config.h"

namespace whit {
namespace {

constexpr size_t kMaxStopStrings = 16;
constexpr size_t kMaxStopStringBytes = 1024;
constexpr size_t kMaxStopTokens = 64;
constexpr size_t kMaxIdBytes = 128;
constexpr int kMaxLogprobs = 20;

// Keeps the first requirement that was broken.
class Requirements {
 public:
  template <typename... Args>
  void Require(bool holds, const absl::FormatSpec<Args...>& otherwise, const Args&... args) {
    if (!holds && status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrFormat(otherwise, args...));
    }
  }
  // NaN lies within no bounds.
  void Within(const char* field, double value, double low, double high) {
    Require(value >= low && value <= high, "%s is %g; it must be between %g and %g", field, value,
            low, high);
  }
  void AboveZero(const char* field, double value, double high) {
    Require(value > 0 && value <= high, "%s is %g; it must be above 0 and at most %g", field, value,
            high);
  }
  void Within(const char* field, int64_t value, int64_t low, int64_t high) {
    Require(value >= low && value <= high, "%s is %d; it must be between %d and %d", field, value,
            low, high);
  }
  void AtMost(const char* field, size_t count, const char* unit, size_t high) {
    Require(count <= high, "%s has %d %s; it may have at most %d", field, count, unit, high);
  }
  void AreTokens(const char* field, const std::vector<int32_t>& ids, int vocab_size) {
    const auto bad = std::find_if(ids.begin(), ids.end(),
                                  [&](int32_t id) { return id < 0 || id >= vocab_size; });
    if (bad == ids.end()) return;
    // Ids are unsigned outside: what is negative here was too large.
    Require(false, "%s[%d] is %d; it must be below the vocabulary size, %d", field,
            bad - ids.begin(), static_cast<uint32_t>(*bad), vocab_size);
  }

  absl::Status status() const { return status_; }

 private:
  absl::Status status_;
};

void CheckSampling(const SamplingParams& sampling, Requirements& r) {
  r.Within("sampling.temperature", sampling.temperature, 0.0, 100.0);
  r.Within("sampling.top_k", int64_t{sampling.top_k}, 0, std::numeric_limits<int32_t>::max());
  r.AboveZero("sampling.top_p", sampling.top_p, 1);
  r.Within("sampling.min_p", sampling.min_p, 0.0, 1.0);
  r.AboveZero("sampling.repetition_penalty", sampling.repetition_penalty, 10);
  r.Within("sampling.presence_penalty", sampling.presence_penalty, -100.0, 100.0);
  r.Within("sampling.frequency_penalty", sampling.frequency_penalty, -100.0, 100.0);
}

void CheckStopping(const Request& request, int vocab_size, Requirements& r) {
  r.AtMost("stopping.stop", request.stop.size(), "strings", kMaxStopStrings);
  for (size_t i = 0; i < request.stop.size(); ++i) {
    const std::string field = absl::StrFormat("stopping.stop[%d]", i);
    r.Require(!request.stop[i].empty(), "%s is empty; it must have at least 1 byte", field);
    r.AtMost(field.c_str(), request.stop[i].size(), "bytes", kMaxStopStringBytes);
  }
  r.AtMost("stopping.stop_token_ids", request.stop_token_ids.size(), "ids", kMaxStopTokens);
  r.AreTokens("stopping.stop_token_ids", request.stop_token_ids, vocab_size);
}

// Everything a request ends up with must fit the context.
void CheckLength(const Request& request, int64_t context_length, Requirements& r) {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  r.Require(prompt_tokens > 0, "prompt is empty; it must have at least 1 token");
  if (request.score_tokens != 0) {
    r.AtMost("prompt", request.prompt.size(), "tokens with the continuation", context_length);
    // The first token has nothing before it to be predicted from.
    r.Require(request.score_tokens > 0 && request.score_tokens < prompt_tokens,
              "score_tokens is %d; it must be above 0 and below the number of tokens, %d",
              request.score_tokens, prompt_tokens);
    return;
  }
  r.Require(prompt_tokens < context_length,
            "prompt has %d tokens; it must have fewer than the model's context, %d", prompt_tokens,
            context_length);
  r.Require(request.max_new_tokens >= 1 && request.max_new_tokens <= context_length - prompt_tokens,
            "stopping.max_new_tokens is %d; it must be between 1 and %d, what the prompt of %d "
            "tokens leaves of the model's context of %d",
            request.max_new_tokens, context_length - prompt_tokens, prompt_tokens, context_length);
}

void CheckPrecision(const Request& request, Requirements& r) {
  if (request.kv_target_bits == 0) return;
  r.Within("kv_cache.target_bits", request.kv_target_bits, kMinTargetBits, kMaxTargetBits);
  const PrecisionPolicySpec& policy = request.kv_policy;
  r.Require(policy.kind == PrecisionPolicySpec::Kind::kAdaptive && policy.packed_bits == 0,
            "kv_cache.target_bits is %g, but policy %s takes none; adaptive does",
            request.kv_target_bits, policy.ToString());
}

absl::Status CheckFloor(const Request& request, Rung lowest_floor) {
  if (!request.kv_floor.has_value()) return absl::OkStatus();
  const std::string floor(RungName(*request.kv_floor));
  if (PossibleRungs(request.kv_policy).size() == 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "kv_cache.floor_rung is %s, but policy %s keeps all tokens at one rung, which pressure "
        "does not lower",
        floor, request.kv_policy.ToString()));
  }
  if (*request.kv_floor < lowest_floor) {
    return absl::FailedPreconditionError(
        absl::StrFormat("kv_cache.floor_rung is %s; this server lets it be no lower than %s", floor,
                        std::string(RungName(lowest_floor))));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateRequest(const Request& request, const ModelConfig& model, Rung lowest_floor) {
  Requirements r;
  CheckLength(request, model.context_length, r);
  r.AreTokens("prompt.token_ids", request.prompt, model.vocab_size);
  CheckSampling(request.sampling, r);
  CheckStopping(request, model.vocab_size, r);
  CheckPrecision(request, r);
  r.Require(request.logprobs >= -1 && request.logprobs <= kMaxLogprobs,
            "logprobs is %d; it must be between 0 and %d", request.logprobs, kMaxLogprobs);
  r.AtMost("request_id", request.id.size(), "bytes", kMaxIdBytes);
  r.Require(std::all_of(request.id.begin(), request.id.end(),
                        [](char c) { return c >= ' ' && c <= '~'; }),
            "request_id has a byte that is not printable ASCII");
  if (!r.status().ok()) return r.status();
  return CheckFloor(request, lowest_floor);
}

}  // namespace whit
