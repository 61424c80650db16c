// The command line of whitd.
#ifndef WHIT_SERVER_OPTIONS_H_
#define WHIT_SERVER_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "controller/policy_spec.h"
#include "runtime/engine/engine.h"
#include "runtime/ops/thread_pool.h"
#include "server/logging.h"
#include "server/security/tls_certificate.h"

namespace whit {

// Under which names besides its own the server's metrics are shown.
enum class MetricsCompat { kNone, kVllm };

struct ServerOptions {
  std::string model_path;
  std::vector<std::string> listen = {"127.0.0.1:50051"};
  std::string metrics_listen = "127.0.0.1:9464";  // empty: no metrics endpoint
  MetricsCompat metrics_compat = MetricsCompat::kNone;
  int max_message_bytes = 16 << 20;
  int max_streams_per_connection = 1024;
  bool reflection = false;
  bool channelz = false;
  TlsFiles tls;                               // all empty: no TLS
  std::string auth_tokens_file;               // empty: no token is asked for
  std::vector<std::string> listen_plaintext;  // neither TLS nor tokens there
  bool insecure = false;                      // listen wherever told
  int threads = AvailableCpus();
  std::optional<uint64_t> kv_cache_bytes;          // unset: chosen from what memory is left
  std::optional<PrecisionPolicySpec> kv_policy;    // unset: chosen by what is known of the model
  std::string kv_policy_file;                      // empty: one is looked for
  std::optional<int64_t> max_queue_prompt_tokens;  // unset: as many as the KV cache can hold
  EngineOptions engine;                            // all but these
  absl::Duration drain_timeout = absl::Seconds(30);
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

// Exit statuses of whitd.
inline constexpr int kExitOk = 0;           // --help, --version, or stopped by a signal
inline constexpr int kExitCannotServe = 1;  // the model, the memory or an address cannot be had
inline constexpr int kExitUsage = 2;        // a flag or an environment variable is wrong

// Either options, or a text to print and a status to exit with.
struct ParsedCommandLine {
  std::optional<ServerOptions> options;
  std::string text;
  int exit_status = kExitOk;
};

// Flags that are absent are taken from WHIT_* environment variables: --kv-cache-bytes from
// WHIT_KV_CACHE_BYTES.
ParsedCommandLine ParseServerOptions(int argc, const char* const* argv);

}  // namespace whit

#endif  // WHIT_SERVER_OPTIONS_H_
