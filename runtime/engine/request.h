// Plain values that pass between a caller and the engine.
#ifndef WHIT_RUNTIME_ENGINE_REQUEST_H_
#define WHIT_RUNTIME_ENGINE_REQUEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "controller/precision_policy.h"
#include "kvpool/rung.h"

namespace whit {

// Ranges and defaults are those of proto/whit/v1; ValidateRequest checks them.
struct SamplingParams {
  float temperature = 0;  // 0 is greedy
  int top_k = 0;          // 0 keeps all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::optional<uint64_t> seed{};  // random if unset
};

struct Request {
  std::string id{};  // for logs
  // Whose it is: requests of one client together may have no more prompt tokens waiting than this.
  // Empty: nobody's in particular.
  std::string client{};
  int64_t client_max_waiting_prompt_tokens = std::numeric_limits<int64_t>::max();
  std::vector<int32_t> prompt{};
  SamplingParams sampling{};
  int64_t max_new_tokens = 256;
  std::vector<std::string> stop{};
  std::vector<int32_t> stop_token_ids{};
  bool ignore_eos = false;
  // Log-probability of each token and of this many alternatives; -1: none wanted.
  int logprobs = -1;
  // > 0: generate nothing; report the log-probabilities of the last score_tokens tokens of the
  // prompt.
  int score_tokens = 0;
  absl::Time deadline = absl::InfiniteFuture();
  PrecisionPolicySpec kv_policy{};
  // True bits per element that this request is to hold in the mean, with `adaptive` alone; 0: the
  // policy's or the server's target.
  double kv_target_bits = 0;
  // The lowest rung that pressure may squeeze this request to, under policies that give several;
  // unset: the operator's.
  std::optional<Rung> kv_floor{};
  bool explain = false;  // fill Completion::precision
};

// Targets of true bits, a request's and the server's.
inline constexpr double kMinTargetBits = 2.25, kMaxTargetBits = 16;

struct ModelConfig;

// The ranges of proto/whit/v1, and those of the model at hand. INVALID_ARGUMENT names the field,
// its value and the bound; FAILED_PRECONDITION if the request wants a floor below the operator's,
// `lowest_floor`.
absl::Status ValidateRequest(const Request& request, const ModelConfig& model, Rung lowest_floor);

enum class FinishReason { kStop, kLength, kCancelled, kDeadline, kError };

struct TokenAlternative {
  int32_t id = 0;
  float logprob = 0;
};

struct TokenOutput {
  int32_t id = 0;
  float logprob = 0;       // filled if logprobs were asked for, or scored
  bool is_greedy = false;  // scored tokens: it was the likeliest
  std::vector<TokenAlternative> top{};
};

struct KvUsage {
  size_t true_bytes = 0;
  size_t fp16_equivalent_bytes = 0;
  double mean_bits = 0;
  std::array<double, kNumRungs> tokens_by_rung{};  // averaged over layers and KV heads
  std::array<size_t, kNumRungs> bytes_by_rung{};
};

struct TokenPrecision {
  int32_t id = 0;
  float bits = 0;  // packed bits per element, over layers and KV heads; 0: not known
};

// The end of a request, given to its sink exactly once.
struct Completion {
  FinishReason reason = FinishReason::kError;
  absl::Status status{};  // OK for kStop and kLength
  int prompt_tokens = 0;
  int cached_tokens = 0;
  int completion_tokens = 0;
  KvUsage kv{};
  std::vector<TokenPrecision> precision{};  // of the tokens in the KV cache, in order; if asked for
  absl::Duration queue_time{}, prefill_time{}, decode_time{};
  absl::Duration time_to_first_token{};  // from Submit; infinite if there was none
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_REQUEST_H_
