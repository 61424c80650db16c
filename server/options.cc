#include "server/options.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <functional>
#include <memory>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "runtime/model/model.h"
#include "server/flag_values.h"
#include "server/help_formatter.h"
#include "server/listen_address.h"
#include "server/version.h"

namespace whit {
namespace {

constexpr char kFooter[] =
    R"(Every flag can also be given as an environment variable: --kv-cache-bytes as
WHIT_KV_CACHE_BYTES. A flag wins over its variable.
Sizes: 24M, 2G, 1.5GiB (powers of 1,024) or 2GB (powers of 1,000). Durations: 500ms, 30s, 2m.

Examples:
  whitd --model=smollm2.gguf
  whitd --model=smollm2.gguf --kv-cache-bytes=2G --listen=0.0.0.0:50051 \
    --tls-certificate=whit.pem --tls-key=whit.key --auth-tokens-file=tokens
  whitd --model=smollm2.gguf --listen=unix:/run/whit.sock --metrics-listen=off --threads=4

Tokens, a line each, # begins a comment; clients send "authorization: Bearer TOKEN":
  NAME sha256:HEX [max-requests=N] [max-queued-prompt-tokens=N]
HEX is from: printf %s "$TOKEN" | sha256sum. The limits are for what runs or waits, and for what
waits. A name may have several tokens, with the same limits. grpc.health.v1 asks for none.

Signals: SIGTERM or SIGINT refuses new requests, lets running ones finish for --drain-timeout, then
cancels them and exits. A second signal cancels them at once.

Exit status: 0 stopped by a signal; 1 cannot serve (model, memory or address); 2 wrong flag.
)";

// A check that names the bad value. CLI11 puts the flag's name before its message.
CLI::Validator Checked(std::function<absl::Status(const std::string&)> check) {
  return CLI::Validator(
      [check = std::move(check)](std::string& value) {
        const absl::Status status = check(value);
        return status.ok() ? std::string() : std::string(status.message());
      },
      "");
}

CLI::Validator Between(int64_t low, int64_t high) {
  return Checked([low, high](const std::string& value) {
    int64_t number = 0;
    const char* const end = value.data() + value.size();
    const std::from_chars_result parsed = std::from_chars(value.data(), end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end && number >= low && number <= high) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' is no whole number in [%d, %d]", value, low, high));
  });
}

absl::StatusOr<uint64_t> ParseByteSizeBetween(std::string_view text, uint64_t low, uint64_t high) {
  const absl::StatusOr<uint64_t> bytes = ParseByteSize(text);
  if (!bytes.ok() || (*bytes >= low && *bytes <= high)) return bytes;
  return absl::InvalidArgumentError(absl::StrFormat("'%s' is not within %s and %s",
                                                    std::string(text), FormatByteSize(low),
                                                    FormatByteSize(high)));
}

absl::StatusOr<uint64_t> ParseKvCacheBytes(std::string_view text) {
  return ParseByteSizeBetween(text, 64 << 10, uint64_t{256} << 30);
}

absl::StatusOr<int> ParseMaxMessageBytes(std::string_view text) {
  const absl::StatusOr<uint64_t> bytes = ParseByteSizeBetween(text, 1 << 10, 1 << 30);
  if (!bytes.ok()) return bytes.status();
  return static_cast<int>(*bytes);
}

absl::StatusOr<double> ParseTargetBits(std::string_view text) {
  double bits;
  if (absl::SimpleAtod(absl::string_view(text.data(), text.size()), &bits) &&
      bits >= kMinTargetBits && bits <= kMaxTargetBits) {
    return bits;
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "'%s' is no number of bits in [%g, %g]", std::string(text), kMinTargetBits, kMaxTargetBits));
}

// Empty for "off".
absl::StatusOr<std::string> ParseMetricsAddress(std::string_view text) {
  if (text == "off") return "";
  if (text.substr(0, 5) == "unix:") {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s': metrics are served on HOST:PORT only", std::string(text)));
  }
  if (absl::Status status = CheckListenAddress(text); !status.ok()) return status;
  return std::string(text);
}

absl::StatusOr<MetricsCompat> ParseMetricsCompat(std::string_view text) {
  if (text == "off") return MetricsCompat::kNone;
  if (text == "vllm") return MetricsCompat::kVllm;
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is neither vllm nor off", std::string(text)));
}

// How a flag is shown in the help, and its environment variable: "--kv-cache-bytes" is also
// "WHIT_KV_CACHE_BYTES".
CLI::Option* Describe(CLI::Option* option, const std::string& flag, const std::string& group,
                      const std::string& value_name) {
  const std::string environment_name =
      "WHIT" + absl::AsciiStrToUpper(absl::StrReplaceAll(flag.substr(1), {{"-", "_"}}));
  return option->envname(environment_name)->group(group)->type_name(value_name);
}

template <class T>
CLI::Option* AddFlag(CLI::App& app, const std::string& flag, T& variable, const std::string& group,
                     const std::string& value_name, const std::string& description) {
  return Describe(app.add_option(flag, variable, description)->capture_default_str(), flag, group,
                  value_name);
}

void AddSwitch(CLI::App& app, const std::string& flag, bool& variable, const std::string& group,
               const std::string& description) {
  Describe(app.add_flag(flag, variable, description), flag, group, "");
}

// Addresses to listen on.
CLI::Option* AddListenFlag(CLI::App& app, const std::string& flag,
                           std::vector<std::string>& variable, const std::string& group,
                           const std::string& description) {
  const std::string default_text = absl::StrJoin(variable, ",");
  return AddFlag(app, flag, variable, group, "ADDRESS", description)
      ->default_str(default_text)
      ->delimiter(',')
      ->expected(1)
      ->take_all()
      ->check(Checked(CheckListenAddress));
}

// A flag whose text is turned into a value by `parse`, which returns a StatusOr.
template <class T, class Parse>
void AddParsedFlag(CLI::App& app, const std::string& flag, T& variable, Parse parse,
                   std::string_view default_text, const std::string& group,
                   const std::string& value_name, const std::string& description) {
  const auto store = [&variable, parse](const std::string& text) { variable = *parse(text); };
  CLI::Option* const option = app.add_option_function<std::string>(flag, store, description);
  Describe(option, flag, group, value_name)
      ->default_str(std::string(default_text))
      ->check(Checked([parse](const std::string& text) { return parse(text).status(); }));
}

void AddModelFlags(CLI::App& app, ServerOptions& options) {
  constexpr char kGroup[] = "Model";
  AddFlag(app, "--model", options.model_path, kGroup, "FILE",
          "GGUF file of a llama-architecture model")
      ->required();
  AddFlag(app, "--threads", options.threads, kGroup, "N",
          "threads that compute; the default is the cores this process may use")
      ->check(Between(1, 1024));
}

void AddNetworkFlags(CLI::App& app, ServerOptions& options) {
  constexpr char kGroup[] = "Network";
  AddListenFlag(
      app, "--listen", options.listen, kGroup,
      "where gRPC is served: HOST:PORT, [IPV6]:PORT or unix:PATH; may be repeated, or several "
      "joined by commas; port 0 lets the system choose; with TLS and tokens where those are given");
  AddParsedFlag(app, "--metrics-listen", options.metrics_listen, ParseMetricsAddress,
                options.metrics_listen, kGroup, "ADDRESS",
                "where Prometheus scrapes /metrics: HOST:PORT, or off");
  AddParsedFlag(app, "--metrics-compat", options.metrics_compat, ParseMetricsCompat, "off", kGroup,
                "NAMES",
                "vllm: /metrics also has the four gauges, under vLLM's names, by which the Gateway "
                "API Inference Extension picks a server; off");
  AddParsedFlag(app, "--max-message-bytes", options.max_message_bytes, ParseMaxMessageBytes,
                FormatByteSize(options.max_message_bytes), kGroup, "SIZE",
                "largest request that is read");
  AddFlag(app, "--max-streams-per-connection", options.max_streams_per_connection, kGroup, "N",
          "calls that one connection may have under way; a client holds more back by itself, so a "
          "gateway that sends all over one connection needs no less than --max-running and "
          "--max-queue-requests together")
      ->check(Between(1, 1 << 20));
  AddSwitch(app, "--reflection", options.reflection, kGroup,
            "serve grpc.reflection.v1alpha, by which grpcurl and such learn the API");
  AddSwitch(app, "--channelz", options.channelz, kGroup,
            "serve grpc.channelz.v1: gRPC's figures of its connections, peers' addresses included");
}

void AddSecurityFlags(CLI::App& app, ServerOptions& options) {
  constexpr char kGroup[] = "Security";
  AddFlag(app, "--tls-certificate", options.tls.certificate, kGroup, "FILE",
          "serve TLS with this certificate, in PEM, and those that lead from it to its authority; "
          "read again when it, its key or --tls-client-ca has changed");
  AddFlag(app, "--tls-key", options.tls.key, kGroup, "FILE",
          "its private key, in PEM, without a passphrase");
  AddFlag(app, "--tls-client-ca", options.tls.client_ca, kGroup, "FILE",
          "authorities, in PEM: clients must show a certificate that one of them has signed");
  AddFlag(app, "--auth-tokens-file", options.auth_tokens_file, kGroup, "FILE",
          "tokens of the clients that may call, and their limits, as below; read again when it has "
          "changed");
  AddListenFlag(app, "--listen-plaintext", options.listen_plaintext, kGroup,
                "where gRPC is served besides, without TLS and without asking for tokens: for a "
                "gateway on this machine that has neither");
  AddSwitch(app, "--insecure", options.insecure, kGroup,
            "allow listening beyond this machine without TLS, or without tokens or client "
            "certificates");
}

void AddKvCacheFlags(CLI::App& app, ServerOptions& options) {
  constexpr char kGroup[] = "KV cache";
  AddParsedFlag(app, "--kv-cache-bytes", options.kv_cache_bytes, ParseKvCacheBytes, "", kGroup,
                "SIZE",
                "memory for keys and values; the default is half of the memory that is available "
                "once the model is loaded, at most 4 GiB");
  AddParsedFlag(app, "--kv-policy", options.kv_policy, ParsePrecisionPolicy, "", kGroup, "POLICY",
                "precision of keys and values: adaptive, or adaptive:BITS with codes and scales of "
                "that many bits per element; fp16; static:RUNG such as static:K4V4; "
                "static-allocated:BITS; learned; rule; random:MIX such as random:K2V2=1,K4V4=3; "
                "the default is adaptive where the model has a policy file with importance or "
                "--kv-target-bits is given, and static:K8V8 elsewhere");
  AddParsedFlag(app, "--kv-target-bits", options.engine.kv_target_bits, ParseTargetBits, "", kGroup,
                "BITS",
                "bits per key and value element, all memory counted, that the running requests of "
                "policy adaptive are held to in the mean; by default each gets codes and scales of "
                "3.5 bits");
  AddParsedFlag(
      app, "--kv-floor", options.engine.kv_floor, ParseRung, RungName(options.engine.kv_floor),
      kGroup, "RUNG",
      "lowest precision that a full cache squeezes a request's tokens to, under policies "
      "that give more than one; requests are admitted as long as all of them fit at their "
      "floors, and may ask for a higher one: K2V2, K4V2, K4V4, K8V4, K8V8 or FP16");
  const auto parse_ring_tokens = [](const std::string& text) -> absl::StatusOr<int> {
    int64_t tokens = 0;
    if (!absl::SimpleAtoi(text, &tokens)) tokens = -1;
    if (!CheckRingTokens(tokens).ok()) {
      return absl::InvalidArgumentError(absl::StrFormat("'%s' is no multiple of %d in [0, %d]",
                                                        text, kTileTokens, kMaxRingTokens));
    }
    return static_cast<int>(tokens);
  };
  RecentRing& ring = options.engine.kv_ring;
  AddParsedFlag(app, "--kv-ring-tokens", ring.tokens, parse_ring_tokens,
                std::to_string(ring.tokens), kGroup, "TOKENS",
                "newest tokens of a request that a quantizing policy has not decided on yet");
  AddParsedFlag(app, "--kv-ring-rung", ring.rung, ParseRung, RungName(ring.rung), kGroup, "RUNG",
                "their precision: K2V2, K4V2, K4V4, K8V4, K8V8 or FP16");
  AddParsedFlag(app, "--kv-sink-rung", ring.sink_rung, ParseRung, RungName(ring.sink_rung), kGroup,
                "RUNG",
                "precision of a request's first 16 tokens under a quantizing policy: attention "
                "always returns to the first of all");
  AddFlag(
      app, "--kv-policy-file", options.kv_policy_file, kGroup, "FILE",
      "what whit-calibrate wrote for this model; the default is the file beside the model whose "
      "name ends in .whitpolicy for .gguf, or else one that comes with Whit; off: none, and keys "
      "are quantized without means");
  AddFlag(app, "--max-cached-prefixes", options.engine.max_cached_prefixes, kGroup, "N",
          "finished requests whose pages are kept while nothing else needs them: a prompt that "
          "begins with 128 tokens or more of one is not computed again from its start; 0: none. "
          "With fp16 a hit changes no token; with other policies it may change low-order digits, "
          "since the prefix's last tokens are quantized already when what follows is computed")
      ->check(Between(0, 1 << 20));
}

void AddSchedulingFlags(CLI::App& app, ServerOptions& options) {
  constexpr char kGroup[] = "Admission and scheduling";
  AddFlag(app, "--max-running", options.engine.max_running_requests, kGroup, "N",
          "requests that generate at the same time")
      ->check(Between(1, Model::kMaxForwardTokens));
  AddFlag(app, "--max-queue-requests", options.engine.max_waiting_requests, kGroup, "N",
          "requests that may wait; more are rejected")
      ->check(Between(0, 1 << 20));
  constexpr char kQueueTokens[] = "--max-queue-prompt-tokens";
  Describe(app.add_option(kQueueTokens, options.max_queue_prompt_tokens,
                          "prompt tokens of all requests that may wait; more are rejected; the "
                          "default is as many as the KV cache holds at its floor"),
           kQueueTokens, kGroup, "TOKENS")
      ->check(Between(0, int64_t{1} << 40));
  AddFlag(app, "--max-step-tokens", options.engine.max_step_tokens, kGroup, "TOKENS",
          "tokens of one pass through the model")
      ->check(Between(1, Model::kMaxForwardTokens));
  AddFlag(app, "--prefill-chunk-tokens", options.engine.prefill_chunk_tokens, kGroup, "TOKENS",
          "prompt tokens of a pass in which streams decode: fewer give steadier streams, more give "
          "faster prompts")
      ->check(Between(1, Model::kMaxForwardTokens));
  AddParsedFlag(app, "--drain-timeout", options.drain_timeout, ParseDuration,
                absl::FormatDuration(options.drain_timeout), kGroup, "DURATION",
                "how long running requests may go on after SIGTERM");
}

void AddLoggingFlags(CLI::App& app, ServerOptions& options) {
  constexpr char kGroup[] = "Logging";
  AddParsedFlag(app, "--log-level", options.log_level, ParseLogLevel,
                LogLevelName(options.log_level), kGroup, "LEVEL", "debug, info, warn or error");
  AddParsedFlag(app, "--log-format", options.log_format, ParseLogFormat,
                LogFormatName(options.log_format), kGroup, "FORMAT",
                "text or json, one line an event on standard error; never holds prompts or "
                "completions");
}

// Whoever reaches an address beyond this machine must be kept out by something.
std::string CheckExposure(const ServerOptions& options) {
  if (options.insecure) return "";
  const bool tls = !options.tls.certificate.empty();
  const bool authenticated = !options.auth_tokens_file.empty() || !options.tls.client_ca.empty();
  const auto check = [](const char* flag, const std::vector<std::string>& addresses,
                        const std::string& remedy) -> std::string {
    for (const std::string& address : addresses) {
      const absl::StatusOr<bool> local = IsLocal(address);
      if (!local.ok()) return absl::StrFormat("%s: %s\n", flag, local.status().message());
      if (!*local) {
        return absl::StrFormat("%s: %s can be reached from other machines; %s, or say --insecure\n",
                               flag, address, remedy);
      }
    }
    return "";
  };
  if (std::string error =
          check("--listen-plaintext", options.listen_plaintext, "listen on 127.0.0.1");
      !error.empty() || (tls && authenticated)) {
    return error;
  }
  std::string missing = tls ? "" : "--tls-certificate and --tls-key";
  if (!authenticated) {
    absl::StrAppend(&missing, missing.empty() ? "" : " and ",
                    "--auth-tokens-file or --tls-client-ca");
  }
  return check("--listen", options.listen, "give " + missing);
}

std::string CheckSecurity(const ServerOptions& options) {
  const TlsFiles& tls = options.tls;
  if (tls.certificate.empty() != tls.key.empty()) {
    return tls.key.empty() ? "--tls-certificate: --tls-key is missing\n"
                           : "--tls-key: --tls-certificate is missing\n";
  }
  if (tls.certificate.empty()) {
    if (!tls.client_ca.empty()) return "--tls-client-ca: --tls-certificate is missing\n";
    return CheckExposure(options);
  }
  for (const std::string& address : options.listen) {
    if (IsUnixAddress(address)) continue;
    // gRPC would let connections to several sockets of one listener handshake at the same time,
    // and then replaces a certificate that another handshake is using.
    const absl::StatusOr<std::vector<std::string>> hosts = HostAddresses(address);
    if (!hosts.ok()) return absl::StrFormat("--listen: %s\n", hosts.status().message());
    if (hosts->size() > 1) {
      return absl::StrFormat("--listen: %s stands for %s; with TLS, name each by itself\n", address,
                             absl::StrJoin(*hosts, " and "));
    }
  }
  return CheckExposure(options);
}

// What no flag can check alone.
std::string CheckTogether(const ServerOptions& options) {
  const EngineOptions& engine = options.engine;
  if (engine.max_running_requests > engine.max_step_tokens) {
    return absl::StrFormat(
        "--max-running: %d is more than --max-step-tokens, %d, but each running request takes a "
        "token of every pass\n",
        engine.max_running_requests, engine.max_step_tokens);
  }
  if (engine.prefill_chunk_tokens > engine.max_step_tokens) {
    return absl::StrFormat("--prefill-chunk-tokens: %d is more than --max-step-tokens, %d\n",
                           engine.prefill_chunk_tokens, engine.max_step_tokens);
  }
  return CheckSecurity(options);
}

}  // namespace

ParsedCommandLine ParseServerOptions(int argc, const char* const* argv) {
  ServerOptions options;
  CLI::App app(
      "whitd streams text from a small language model over gRPC, on CPUs.\n"
      "API: whit.v1.TextGenerationService, vllm.grpc.engine.VllmEngine, grpc.health.v1, "
      "xds.service.orca.v3.OpenRcaService.",
      "whitd");
  app.set_version_flag("--version", "whitd " + std::string(Version()),
                       "Print the version and exit");
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.formatter(std::make_shared<HelpFormatter>());
  app.footer(kFooter);
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  AddModelFlags(app, options);
  AddNetworkFlags(app, options);
  AddSecurityFlags(app, options);
  AddKvCacheFlags(app, options);
  AddSchedulingFlags(app, options);
  AddLoggingFlags(app, options);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    const int status = app.exit(error, out, err);
    return {std::nullopt, out.str() + err.str(), status == 0 ? kExitOk : kExitUsage};
  }
  if (std::string error = CheckTogether(options); !error.empty()) {
    return {std::nullopt, std::move(error), kExitUsage};
  }
  return {std::move(options), "", kExitOk};
}

}  // namespace whit
