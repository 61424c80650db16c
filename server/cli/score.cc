// whit score
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "server/cli/commands.h"
#include "server/cli/generation_flags.h"
#include "server/cli/json_output.h"

namespace whit {
namespace {

struct ScoreFlags {
  std::string context;
  std::string continuation;
  std::vector<uint32_t> context_token_ids;
  std::vector<uint32_t> token_ids;
  v1::ScoreRequest request;
};

void FillPrompt(const std::string& text, const std::vector<uint32_t>& token_ids,
                v1::Prompt& prompt) {
  if (token_ids.empty()) {
    prompt.set_text(TextOrStandardInput(text));
  } else {
    prompt.mutable_token_ids()->mutable_ids()->Add(token_ids.begin(), token_ids.end());
  }
}

int Score(ScoreFlags& flags, const CommandContext& context) {
  FillPrompt(flags.context, flags.context_token_ids, *flags.request.mutable_context());
  FillPrompt(flags.continuation, flags.token_ids, *flags.request.mutable_continuation());
  grpc::ClientContext rpc;
  SetUpCall(context.flags, rpc);
  v1::ScoreResponse response;
  const grpc::Status status = ConnectStub(context.flags)->Score(&rpc, flags.request, &response);
  if (!status.ok()) return ReportFailure(status, context.flags);
  if (context.flags.json) {
    PrintJson(ToJson(response));
    return kExitOk;
  }
  for (int i = 0; i < response.token_ids_size(); ++i) {
    std::printf("%8u %10.4f%s\n", response.token_ids(i), response.logprobs(i),
                response.is_greedy(i) ? "  likeliest" : "");
  }
  std::printf("total %.4f over %d tokens, perplexity %.4f\n", response.total_logprob(),
              response.token_ids_size(),
              std::exp(-response.total_logprob() / response.token_ids_size()));
  return kExitOk;
}

}  // namespace

void AddScore(CLI::App& app, CommandContext context) {
  CLI::App* const command =
      app.add_subcommand("score", "Log-likelihood of a continuation after a context");
  const auto flags = std::make_shared<ScoreFlags>();
  CLI::Option* const text = command->add_option(
      "context", flags->context, "the text before; may be empty; - reads standard input");
  CLI::Option* const continuation =
      command->add_option("continuation", flags->continuation, "the text to score");
  CLI::Option* const context_token_ids =
      command->add_option("--context-token-ids", flags->context_token_ids, "the context as ids")
          ->delimiter(',')
          ->type_name("ID,...");
  CLI::Option* const token_ids =
      command->add_option("--token-ids", flags->token_ids, "the continuation as token ids")
          ->delimiter(',')
          ->type_name("ID,...");
  text->excludes(context_token_ids);
  continuation->excludes(token_ids);
  AddKvCacheFlags(*command, *flags->request.mutable_kv_cache());
  AddConnectionFlags(*command, context.flags);
  command->callback([=] {
    const bool missing = continuation->empty() && token_ids->empty();
    context.chosen = [=] {
      return missing ? ReportUsage("score needs a continuation or --token-ids")
                     : Score(*flags, context);
    };
  });
}

}  // namespace whit
