// whit-simulate: hours of traffic against the engine's own decisions, in minutes.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "controller/policy_spec.h"
#include "tests/bench/simulation/simulation.h"
#include "tests/bench/simulation/simulation_report.h"
#include "tests/bench/simulation/trace.h"

namespace whit {
namespace {

constexpr char kDescription[] =
    R"(Replays a trace of requests against Whit's engine in simulated time, and tells how they fared.

The queue, admission, the scheduler, policies, prices, the pressure loop and the pool of pages are the
engine's own, and so is the step that drives them; pages are allocated, filled, demoted and moved as
in a server. What is modelled: a tiny model with random weights stands in for the real one (--lists),
and the clock advances by what the step would have taken on the real one (--us-...), fitted to
whit-bench on SmolLM2-135M-Instruct Q4_1 on 2 cores. So decisions, bytes and counts are the engine's,
times are as good as that model of time, and the tokens mean nothing.)";
constexpr char kFooter[] = R"(Examples:
  # Two hours at three times what the server can finish; clients give up after a minute.
  whit-simulate --trace=AzureLLMInferenceTrace_conv.csv --overload=3 --duration=2h --deadline=60s
  # The same pool without precision to give way.
  whit-simulate --trace=AzureLLMInferenceTrace_conv.csv --overload=3 --kv-policy=fp16
  # Do clients that come back when they are told to get through?
  whit-simulate --trace=AzureLLMInferenceTrace_conv.csv --overload=1.2 --retries=5

The traces: https://github.com/Azure/AzurePublicDataset, CSV files with the columns TIMESTAMP,
ContextTokens and GeneratedTokens. Requests longer than --context are rejected as "invalid".

Exit status: 0 all promises were kept; 1 some were not, or a file cannot be read; 2 wrong flag.
)";

absl::Status ParseDurationFlag(const std::string& text, absl::Duration* duration) {
  if (absl::ParseDuration(text, duration) && *duration > absl::ZeroDuration()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is no duration above 0, such as 90s, 20m or 2h", text));
}

// A flag of text that `parse` turns into `value`.
template <typename T, typename Parse>
CLI::Option* AddParsed(CLI::App& app, const char* flag, T& value, Parse parse,
                       const std::string& description, const char* type) {
  return app
      .add_option_function<std::string>(
          flag,
          [&value, parse, flag](const std::string& text) {
            if (absl::Status status = parse(text, &value); !status.ok()) {
              throw CLI::ValidationError(flag, std::string(status.message()));
            }
          },
          description)
      ->type_name(type);
}

absl::Status ParsePolicy(const std::string& text, PrecisionPolicySpec* policy) {
  absl::StatusOr<PrecisionPolicySpec> parsed = ParsePrecisionPolicy(text);
  if (parsed.ok()) *policy = *parsed;
  return parsed.status();
}

absl::Status ParseFloor(const std::string& text, Rung* rung) {
  absl::StatusOr<Rung> parsed = ParseRung(text);
  if (parsed.ok()) *rung = *parsed;
  return parsed.status();
}

struct Flags {
  SimulationOptions simulation{};
  std::vector<std::string> traces{};
  absl::Duration duration = absl::Hours(1);
  double rate = 0, overload = 0;
  bool json = false;
};

void AddTraffic(CLI::App& app, Flags& flags) {
  const char* const group = "Traffic";
  app.add_option("--trace", flags.traces,
                 "CSV files with arrival times and lengths, one after the other")
      ->required()
      ->type_name("FILE...")
      ->group(group);
  AddParsed(app, "--duration", flags.duration, ParseDurationFlag,
            "for so long requests come; a trace that ends sooner begins again [1h]", "TIME")
      ->group(group);
  auto* rate = app.add_option("--rate", flags.rate,
                              "requests a second in the mean; the trace's own if not given")
                   ->check(CLI::PositiveNumber)
                   ->group(group);
  app.add_option(
         "--overload", flags.overload,
         "instead: so many times as many as this server finishes, which a run finds out first")
      ->check(CLI::PositiveNumber)
      ->excludes(rate)
      ->group(group);
  ClientBehaviour& clients = flags.simulation.clients;
  AddParsed(app, "--deadline", clients.deadline, ParseDurationFlag,
            "of each request, from its first try; none if not given", "TIME")
      ->group(group);
  app.add_option("--retries", clients.retries,
                 "how often a client comes back, each time when it was told to")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--hang-up-share", clients.hang_up_share,
                 "clients that hang up, at random within a minute")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", flags.simulation.seed, "of all that is random")
      ->capture_default_str()
      ->group(group);
}

void AddServer(CLI::App& app, Flags& flags) {
  const char* const group = "Server, as whitd's flags";
  EngineOptions& engine = flags.simulation.engine;
  AddParsed(app, "--kv-policy", flags.simulation.clients.policy, ParsePolicy,
            "precision of keys and values [adaptive]", "POLICY")
      ->group(group);
  AddParsed(app, "--kv-floor", engine.kv_floor, ParseFloor,
            "lowest rung that pressure squeezes requests to [K4V2]", "RUNG")
      ->group(group);
  app.add_option("--kv-cache-bytes", engine.kv_cache_bytes, "the pool: 64M, 2G")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group(group);
  app.add_option("--kv-target-bits", engine.kv_target_bits, "true bits per element, 0: none")
      ->capture_default_str()
      ->group(group);
  const auto number = [&](const char* flag, auto& value, const char* description) {
    app.add_option(flag, value, description)
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str()
        ->group(group);
  };
  number("--max-running", engine.max_running_requests, "requests that run at once");
  number("--max-queue-requests", engine.max_waiting_requests, "requests that may wait");
  number("--max-queue-prompt-tokens", engine.max_waiting_prompt_tokens,
         "prompt tokens of those who wait");
  number("--max-step-tokens", engine.max_step_tokens, "tokens of one step");
  number("--prefill-chunk-tokens", engine.prefill_chunk_tokens, "prompt tokens beside decodes");
}

void AddModel(CLI::App& app, Flags& flags) {
  const char* const group = "Modelled model";
  ModelledServer& server = flags.simulation.server;
  const auto count = [&](const char* flag, int& value, int high, const char* description) {
    app.add_option(flag, value, description)
        ->check(CLI::Range(1, high))
        ->capture_default_str()
        ->group(group);
  };
  count("--layers", server.num_layers, 1024, "layers");
  count("--kv-heads", server.num_kv_heads, 1024, "KV heads of a layer");
  app.add_option("--head-dim", server.head_dim, "dimension of a head")
      ->check(CLI::IsMember({16, 32, 64, 128}))
      ->capture_default_str()
      ->group(group);
  count("--context", server.context_length, 1 << 20, "longest sequence in tokens");
  count(
      "--lists", server.lists, 1024,
      "of the layers * kv-heads lists of pages, so many are simulated, each for several, in a pool "
      "that is smaller in proportion. More: slower, and pressure is relieved at the true pace");
  const auto cost = [&](const char* flag, double& value, const char* description) {
    app.add_option(flag, value, description)
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str()
        ->group(group);
  };
  StepCosts& costs = server.costs;
  cost("--us-step", costs.step, "microseconds of a step, whatever is in it");
  cost("--us-prompt-token", costs.prompt_token, "and for each token of a prompt");
  cost("--us-decoded-token", costs.decoded_token, "and for each decoded token");
  cost("--us-depth", costs.depth_kilotoken,
       "and for 1,000 tokens of its context, whatever their precision");
  cost("--us-depth-bit", costs.depth_kilotoken_bit, "and for each bit that their elements have");
  cost("--us-prompt-depth", costs.prompt_depth_kilotoken,
       "for a prompt's token and 1,000 tokens of its context");
}

absl::Status Run(Flags& flags) {
  const ModelledServer& server = flags.simulation.server;
  if (server.lists > server.num_lists()) {
    return absl::InvalidArgumentError(absl::StrFormat("--lists is %d; the modelled model has %d",
                                                      server.lists, server.num_lists()));
  }
  std::vector<TracedRequest> trace;
  for (const std::string& path : flags.traces) {
    absl::StatusOr<std::vector<TracedRequest>> read = ReadTrace(path);
    if (!read.ok()) return read.status();
    const absl::Duration begin =
        trace.empty() ? absl::ZeroDuration() : trace.back().arrival + absl::Milliseconds(1);
    for (TracedRequest request : *read) {
      request.arrival += begin;
      trace.push_back(request);
    }
  }
  double rate = flags.rate;
  if (flags.overload > 0) {
    const absl::StatusOr<double> saturated =
        SaturatedRate(flags.simulation, trace, absl::Minutes(10));
    if (!saturated.ok()) return saturated.status();
    rate = flags.overload * *saturated;
    if (!flags.json) {
      absl::PrintF("this server finishes %.3f such requests a second; %.3f come\n", *saturated,
                   rate);
    }
  } else if (rate == 0) {
    rate = static_cast<double>(trace.size()) /
           std::max(1.0, absl::ToDoubleSeconds(trace.back().arrival));
  }
  absl::StatusOr<SimulationResult> result =
      Simulate(flags.simulation, Repeat(trace, rate, flags.duration));
  if (!result.ok()) return result.status();
  const std::string text = flags.json ? SimulationJson(*result) : SimulationTable(*result);
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (result->broken > 0) return absl::InternalError("promises were broken");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  flags.simulation.clients.policy = {.kind = PrecisionPolicySpec::Kind::kAdaptive};
  CLI::App app(kDescription);
  app.footer(kFooter);
  AddTraffic(app, flags);
  AddServer(app, flags);
  AddModel(app, flags);
  app.add_flag("--json", flags.json, "print one JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (absl::Status status = Run(flags); !status.ok()) {
    std::fprintf(stderr, "whit-simulate: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace whit

int main(int argc, char** argv) { return whit::Main(argc, argv); }
