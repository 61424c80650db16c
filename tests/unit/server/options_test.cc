#include "server/options.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace whit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ParsedCommandLine Parse(std::vector<std::string> flags) {
  std::vector<const char*> argv = {"whitd"};
  for (const std::string& flag : flags) argv.push_back(flag.c_str());
  return ParseServerOptions(static_cast<int>(argv.size()), argv.data());
}

// An environment variable that is set while it lives.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~ScopedEnvironment() { unsetenv(name_); }

 private:
  const char* const name_;
};

TEST(OptionsTest, TheModelIsAllThatIsRequired) {
  const ParsedCommandLine parsed = Parse({"--model=m.gguf"});
  ASSERT_TRUE(parsed.options.has_value()) << parsed.text;
  EXPECT_EQ(parsed.options->model_path, "m.gguf");
  EXPECT_THAT(parsed.options->listen, ElementsAre("127.0.0.1:50051"));
  EXPECT_EQ(parsed.options->metrics_listen, "127.0.0.1:9464");
  EXPECT_EQ(parsed.options->metrics_compat, MetricsCompat::kNone);
  EXPECT_FALSE(parsed.options->kv_cache_bytes.has_value());
  EXPECT_GE(parsed.options->threads, 1);
  EXPECT_FALSE(parsed.options->kv_policy.has_value());
  EXPECT_EQ(parsed.options->engine.kv_ring, kDefaultRing);

  EXPECT_EQ(Parse({}).exit_status, kExitUsage);
  EXPECT_THAT(Parse({}).text, HasSubstr("--model"));
}

TEST(OptionsTest, TakesEveryFlag) {
  const ParsedCommandLine parsed = Parse({"--model=m.gguf",
                                          "--listen=127.0.0.1:1,unix:/tmp/s",
                                          "--listen=[::1]:2",
                                          "--metrics-listen=off",
                                          "--metrics-compat=vllm",
                                          "--max-message-bytes=1M",
                                          "--threads=3",
                                          "--kv-cache-bytes=24M",
                                          "--kv-policy=static:K4V4",
                                          "--kv-policy-file=p",
                                          "--kv-floor=K8V4",
                                          "--kv-ring-tokens=64",
                                          "--kv-target-bits=3.5",
                                          "--kv-ring-rung=K4V4",
                                          "--kv-sink-rung=K8V8",
                                          "--max-cached-prefixes=2",
                                          "--max-running=5",
                                          "--max-queue-requests=6",
                                          "--max-queue-prompt-tokens=7",
                                          "--max-step-tokens=80",
                                          "--prefill-chunk-tokens=9",
                                          "--drain-timeout=1m",
                                          "--log-level=warn",
                                          "--log-format=json",
                                          "--max-streams-per-connection=11",
                                          "--tls-certificate=c",
                                          "--tls-key=k",
                                          "--tls-client-ca=a",
                                          "--auth-tokens-file=t",
                                          "--reflection",
                                          "--channelz",
                                          "--insecure",
                                          "--listen-plaintext=127.0.0.1:4,unix:/tmp/p"});
  ASSERT_TRUE(parsed.options.has_value()) << parsed.text;
  const ServerOptions& options = *parsed.options;
  EXPECT_THAT(options.listen, ElementsAre("127.0.0.1:1", "unix:/tmp/s", "[::1]:2"));
  EXPECT_EQ(options.metrics_listen, "");
  EXPECT_EQ(options.metrics_compat, MetricsCompat::kVllm);
  EXPECT_EQ(options.max_message_bytes, 1 << 20);
  EXPECT_EQ(options.max_streams_per_connection, 11);
  EXPECT_EQ(options.tls.certificate, "c");
  EXPECT_EQ(options.tls.key, "k");
  EXPECT_EQ(options.tls.client_ca, "a");
  EXPECT_EQ(options.auth_tokens_file, "t");
  EXPECT_THAT(options.listen_plaintext, ElementsAre("127.0.0.1:4", "unix:/tmp/p"));
  EXPECT_TRUE(options.reflection && options.channelz && options.insecure);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.kv_cache_bytes, 24 << 20);
  EXPECT_EQ(options.kv_policy->ToString(), "static:K4V4");
  EXPECT_EQ(options.kv_policy_file, "p");
  EXPECT_EQ(options.engine.kv_floor, Rung::kK8V4);
  EXPECT_EQ(options.engine.kv_target_bits, 3.5);
  EXPECT_EQ(options.engine.kv_ring,
            (RecentRing{.rung = Rung::kK4V4, .tokens = 64, .sink_rung = Rung::kK8V8}));
  EXPECT_EQ(options.engine.max_cached_prefixes, 2);
  EXPECT_EQ(options.engine.max_running_requests, 5);
  EXPECT_EQ(options.engine.max_waiting_requests, 6);
  EXPECT_EQ(options.max_queue_prompt_tokens, 7);
  EXPECT_EQ(options.engine.max_step_tokens, 80);
  EXPECT_EQ(options.engine.prefill_chunk_tokens, 9);
  EXPECT_EQ(options.drain_timeout, absl::Minutes(1));
  EXPECT_EQ(options.log_level, LogLevel::kWarn);
  EXPECT_EQ(options.log_format, LogFormat::kJson);
}

TEST(OptionsTest, EnvironmentVariablesStandInForAbsentFlags) {
  const ScopedEnvironment model("WHIT_MODEL", "e.gguf");
  const ScopedEnvironment bytes("WHIT_KV_CACHE_BYTES", "2G");
  const ScopedEnvironment listen("WHIT_LISTEN", "127.0.0.1:1,[::1]:2");
  const ScopedEnvironment ring("WHIT_KV_RING_TOKENS", "128");
  ParsedCommandLine parsed = Parse({});
  ASSERT_TRUE(parsed.options.has_value()) << parsed.text;
  EXPECT_EQ(parsed.options->model_path, "e.gguf");
  EXPECT_EQ(parsed.options->kv_cache_bytes, uint64_t{2} << 30);
  EXPECT_THAT(parsed.options->listen, ElementsAre("127.0.0.1:1", "[::1]:2"));
  EXPECT_EQ(parsed.options->engine.kv_ring.tokens, 128);

  parsed = Parse({"--model=f.gguf", "--kv-cache-bytes=1G"});
  ASSERT_TRUE(parsed.options.has_value()) << parsed.text;
  EXPECT_EQ(parsed.options->model_path, "f.gguf");
  EXPECT_EQ(parsed.options->kv_cache_bytes, uint64_t{1} << 30);
}

TEST(OptionsTest, EnvironmentVariablesAreCheckedLikeFlags) {
  const ScopedEnvironment threads("WHIT_THREADS", "none");
  const ParsedCommandLine parsed = Parse({"--model=m.gguf"});
  EXPECT_EQ(parsed.exit_status, kExitUsage);
  EXPECT_THAT(parsed.text, HasSubstr("'none'"));
}

TEST(OptionsTest, ErrorsNameFlagValueAndBound) {
  struct Case {
    std::string flag, value, bound;
  };
  for (const Case& c : std::vector<Case>{{"--threads", "0", "[1, 1024]"},
                                         {"--threads", "two", "[1, 1024]"},
                                         {"--kv-cache-bytes", "1X", "such as 24M"},
                                         {"--kv-floor", "K3V3", "K4V2, K4V4"},
                                         {"--kv-cache-bytes", "1K", "64.0 KiB"},
                                         {"--kv-policy", "best", "fp16"},
                                         {"--kv-target-bits", "2", "[2.25, 16]"},
                                         {"--kv-target-bits", "nan", "[2.25, 16]"},
                                         {"--kv-ring-tokens", "20", "of 16 in [0, 65536]"},
                                         {"--kv-ring-tokens", "-16", "of 16 in [0, 65536]"},
                                         {"--kv-ring-tokens", "all", "of 16 in [0, 65536]"},
                                         {"--kv-ring-rung", "K3V3", "K2V2, K4V2"},
                                         {"--kv-sink-rung", "fp16", "K8V8, FP16"},
                                         {"--listen", "50051", "HOST:PORT"},
                                         {"--listen", "127.0.0.1:70000", "65535"},
                                         {"--metrics-listen", "unix:/tmp/s", "HOST:PORT"},
                                         {"--metrics-compat", "sglang", "vllm"},
                                         {"--max-message-bytes", "2G", "1.0 GiB"},
                                         {"--max-running", "-1", "[1, "},
                                         {"--max-queue-requests", "1.5", "[0, "},
                                         {"--max-step-tokens", "0", "[1, "},
                                         {"--drain-timeout", "soon", "30s"},
                                         {"--log-level", "loud", "debug, info, warn, error"},
                                         {"--log-format", "xml", "text, json"}}) {
    const ParsedCommandLine parsed = Parse({"--model=m.gguf", c.flag + "=" + c.value});
    EXPECT_FALSE(parsed.options.has_value()) << c.flag << c.value;
    EXPECT_EQ(parsed.exit_status, kExitUsage);
    EXPECT_THAT(parsed.text, HasSubstr(c.flag));
    EXPECT_THAT(parsed.text, HasSubstr("'" + c.value + "'"));
    EXPECT_THAT(parsed.text, HasSubstr(c.bound));
  }
}

TEST(OptionsTest, ChecksFlagsThatDependOnEachOther) {
  EXPECT_THAT(Parse({"--model=m", "--max-running=9", "--max-step-tokens=8"}).text,
              HasSubstr("--max-running: 9 is more than --max-step-tokens, 8"));
  EXPECT_THAT(Parse({"--model=m", "--max-running=8", "--max-step-tokens=8"}).text,
              HasSubstr("--prefill-chunk-tokens"));
}

TEST(OptionsTest, TheLastOfAFlagWins) {
  const ParsedCommandLine parsed = Parse({"--model=a", "--threads=1", "--model=b", "--threads=2"});
  ASSERT_TRUE(parsed.options.has_value()) << parsed.text;
  EXPECT_EQ(parsed.options->model_path, "b");
  EXPECT_EQ(parsed.options->threads, 2);
}

TEST(OptionsTest, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(Parse({"--model=m", "--modle=n"}).exit_status, kExitUsage);
  EXPECT_EQ(Parse({"--model=m", "stray"}).exit_status, kExitUsage);
}

TEST(OptionsTest, HelpNamesEveryFlagAndSucceeds) {
  const ParsedCommandLine parsed = Parse({"--help"});
  EXPECT_FALSE(parsed.options.has_value());
  EXPECT_EQ(parsed.exit_status, kExitOk);
  for (const std::string flag :
       {"--model", "--listen", "--metrics-listen", "--kv-cache-bytes", "--kv-policy",
        "--kv-policy-file", "--threads", "--drain-timeout", "WHIT_KV_CACHE_BYTES", "Exit status"}) {
    EXPECT_THAT(parsed.text, HasSubstr(flag));
  }
  EXPECT_THAT(Parse({"--version"}).text, HasSubstr("whitd "));
}

TEST(OptionsTest, NothingIsOpenToOthersUnlessTold) {
  const std::vector<std::string> tls = {"--model=m.gguf", "--tls-certificate=c", "--tls-key=k"};
  const auto parse = [](std::vector<std::string> flags, const std::vector<std::string>& more) {
    flags.insert(flags.end(), more.begin(), more.end());
    return Parse(flags);
  };
  for (const char* address : {"0.0.0.0:1", "[::]:1", "192.0.2.1:1", "127.0.0.1:1,0.0.0.0:2"}) {
    const std::string listen = std::string("--listen=") + address;
    const ParsedCommandLine refused = parse({"--model=m.gguf"}, {listen});
    EXPECT_EQ(refused.exit_status, kExitUsage) << address;
    EXPECT_THAT(refused.text, HasSubstr("can be reached from other machines"));
    EXPECT_THAT(refused.text,
                HasSubstr("--tls-certificate and --tls-key and --auth-tokens-file or"));
    EXPECT_THAT(parse(tls, {listen}).text, HasSubstr("give --auth-tokens-file or"));
    EXPECT_THAT(parse({"--model=m.gguf"}, {listen, "--auth-tokens-file=t"}).text,
                HasSubstr("give --tls-certificate and --tls-key, or say --insecure"));
    EXPECT_TRUE(parse({"--model=m.gguf"}, {listen, "--insecure"}).options.has_value());
    EXPECT_TRUE(parse(tls, {listen, "--auth-tokens-file=t"}).options.has_value());
    EXPECT_TRUE(parse(tls, {listen, "--tls-client-ca=a"}).options.has_value());
  }
  EXPECT_THAT(parse(tls, {"--listen=0.0.0.0:1"}).text, HasSubstr("0.0.0.0:1 can be reached"));

  // Whatever else is protected.
  const std::vector<std::string> plaintext = {"--auth-tokens-file=t",
                                              "--listen-plaintext=0.0.0.0:3"};
  EXPECT_THAT(parse(tls, plaintext).text,
              HasSubstr("--listen-plaintext: 0.0.0.0:3 can be reached"));
  for (const char* address : {"127.0.0.1:3", "unix:/run/s"}) {
    const ParsedCommandLine allowed = parse(tls, {std::string("--listen-plaintext=") + address});
    ASSERT_TRUE(allowed.options.has_value()) << allowed.text;
    EXPECT_THAT(allowed.options->listen_plaintext, ElementsAre(address));
  }
}

TEST(OptionsTest, TlsFlagsGoTogether) {
  EXPECT_THAT(Parse({"--model=m", "--tls-certificate=c"}).text, HasSubstr("--tls-key is missing"));
  EXPECT_THAT(Parse({"--model=m", "--tls-key=k"}).text, HasSubstr("--tls-certificate is missing"));
  EXPECT_THAT(Parse({"--model=m", "--tls-client-ca=a"}).text,
              HasSubstr("--tls-client-ca: --tls-certificate is missing"));
  EXPECT_EQ(Parse({"--model=m", "--tls-key=k"}).exit_status, kExitUsage);
}

}  // namespace
}  // namespace whit
