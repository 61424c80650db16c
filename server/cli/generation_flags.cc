#include "server/cli/generation_flags.h"

#include <string>
#include <vector>

namespace whit {
namespace {

constexpr char kSampling[] = "Sampling";
constexpr char kStopping[] = "Stopping";
constexpr char kPrecision[] = "Precision";
constexpr char kOutput[] = "Output";

// A flag that hands its value to a setter of `message`, which belongs to a proto.
template <class T, class Message>
CLI::Option* AddSetter(CLI::App& app, const std::string& name, Message& message,
                       void (Message::*set)(T), const char* group, const std::string& type_name,
                       const std::string& description) {
  return app
      .add_option_function<T>(
          name, [&message, set](const T& value) { (message.*set)(value); }, description)
      ->type_name(type_name)
      ->group(group);
}

}  // namespace

void AddKvCacheFlags(CLI::App& app, v1::KvCacheOptions& options) {
  app.add_option_function<std::string>(
         "--kv-policy", [&](const std::string& policy) { options.set_policy(policy); },
         "precision policy of keys and values, such as fp16")
      ->type_name("POLICY")
      ->group(kPrecision);
  AddSetter(app, "--kv-target-bits", options, &v1::KvCacheOptions::set_target_bits, kPrecision,
            "BITS", "mean bits per element that the policy aims at");
  app.add_option_function<std::string>(
         "--kv-floor-rung", [&](const std::string& rung) { options.set_floor_rung(rung); },
         "lowest rung this request may be squeezed to, such as K2V2")
      ->type_name("RUNG")
      ->group(kPrecision);
}

void AddGenerationFlags(CLI::App& app, v1::GenerateStreamRequest& request) {
  using Sampling = v1::SamplingParameters;
  Sampling& sampling = *request.mutable_sampling();
  AddSetter(app, "--temperature", sampling, &Sampling::set_temperature, kSampling, "T",
            "0 is greedy, the default; at most 100");
  AddSetter(app, "--top-k", sampling, &Sampling::set_top_k, kSampling, "K",
            "sample among the K likeliest tokens; 0, the default: among all");
  AddSetter(app, "--top-p", sampling, &Sampling::set_top_p, kSampling, "P",
            "sample among the likeliest tokens that reach probability P together");
  AddSetter(app, "--min-p", sampling, &Sampling::set_min_p, kSampling, "P",
            "drop tokens less likely than P times the likeliest");
  AddSetter(app, "--repetition-penalty", sampling, &Sampling::set_repetition_penalty, kSampling,
            "R", "divide the logits of tokens already seen; 1 is none");
  AddSetter(app, "--presence-penalty", sampling, &Sampling::set_presence_penalty, kSampling, "R",
            "subtract from the logits of generated tokens");
  AddSetter(app, "--frequency-penalty", sampling, &Sampling::set_frequency_penalty, kSampling, "R",
            "subtract for each time that a token was generated");
  AddSetter(app, "--seed", sampling, &Sampling::set_seed, kSampling, "N",
            "same seed, same request: same tokens");

  v1::StoppingCriteria& stopping = *request.mutable_stopping();
  AddSetter(app, "--max-new-tokens", stopping, &v1::StoppingCriteria::set_max_new_tokens, kStopping,
            "N", "generate at most N tokens; default 256");
  app.add_option_function<std::vector<std::string>>(
         "--stop",
         [&](const std::vector<std::string>& stops) {
           for (const std::string& stop : stops) stopping.add_stop(stop);
         },
         "end before this string; may be repeated")
      ->expected(1)
      ->take_all()
      ->type_name("TEXT")
      ->group(kStopping);
  app.add_option_function<std::vector<uint32_t>>(
         "--stop-token-ids",
         [&](const std::vector<uint32_t>& ids) {
           stopping.mutable_stop_token_ids()->Add(ids.begin(), ids.end());
         },
         "end at any of these tokens")
      ->delimiter(',')
      ->expected(1)
      ->take_all()
      ->type_name("ID,...")
      ->group(kStopping);
  app.add_flag_callback(
         "--ignore-eos", [&] { stopping.set_ignore_eos(true); },
         "go on past the model's own end of text")
      ->group(kStopping);

  AddKvCacheFlags(app, *request.mutable_kv_cache());
  AddSetter(app, "--logprobs", request, &v1::GenerateStreamRequest::set_logprobs, kOutput, "N",
            "log-probabilities of each token and of N alternatives (with --json)");
  app.add_option_function<std::string>(
         "--request-id", [&](const std::string& id) { request.set_request_id(id); },
         "an id for the server's log")
      ->type_name("ID")
      ->group(kOutput);
}

}  // namespace whit
