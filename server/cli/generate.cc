// whit generate
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "server/cli/commands.h"
#include "server/cli/explanation.h"
#include "server/cli/generation_flags.h"
#include "server/cli/stream.h"

namespace whit {
namespace {

struct GenerateFlags {
  std::string prompt;
  std::vector<uint32_t> token_ids;
  bool chat = false;
  std::string system;
  bool quiet = false;
  bool explain = false;
  v1::GenerateStreamRequest request;
};

void FillPrompt(const GenerateFlags& flags, v1::Prompt& prompt) {
  if (!flags.token_ids.empty()) {
    prompt.mutable_token_ids()->mutable_ids()->Add(flags.token_ids.begin(), flags.token_ids.end());
    return;
  }
  const std::string text = TextOrStandardInput(flags.prompt);
  if (!flags.chat) {
    prompt.set_text(text);
    return;
  }
  if (!flags.system.empty()) {
    v1::ChatMessage& message = *prompt.mutable_chat()->add_messages();
    message.set_role("system");
    message.set_content(flags.system);
  }
  v1::ChatMessage& message = *prompt.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content(text);
}

int Generate(GenerateFlags& flags, const CommandContext& context) {
  FillPrompt(flags, *flags.request.mutable_prompt());
  if (flags.explain) flags.request.mutable_kv_cache()->set_explain(true);
  const auto stub = ConnectStub(context.flags);
  const StreamResult result = ShowStream(*stub, flags.request, context.flags, context.interrupts);
  if (!result.status.ok()) {
    return ReportFailure(result.status, context.flags, result.interrupted);
  }
  if (!context.flags.json && flags.explain) {
    std::printf("\n%s", RenderExplanation(result.final.kv_cache()).c_str());
    std::fflush(stdout);
  }
  if (!context.flags.json && !flags.quiet) {
    std::fprintf(stderr, "whit: %s\n", Summary(result.final).c_str());
  }
  return kExitOk;
}

}  // namespace

void AddGenerate(CLI::App& app, CommandContext context) {
  CLI::App* const command =
      app.add_subcommand("generate", "Continue a text, and print what comes as it comes");
  const auto flags = std::make_shared<GenerateFlags>();
  CLI::Option* const prompt = command->add_option(
      "prompt", flags->prompt, "the text to continue, as it is; - reads standard input");
  CLI::Option* const token_ids =
      command->add_option("--token-ids", flags->token_ids, "the prompt as token ids of the model")
          ->delimiter(',')
          ->type_name("ID,...");
  CLI::Option* const chat = command->add_flag(
      "--chat", flags->chat, "take the prompt as a user's message, in the model's chat format");
  command->add_option("--system", flags->system, "with --chat: the system message")->needs(chat);
  prompt->excludes(token_ids);
  chat->excludes(token_ids);
  command->add_flag("--quiet", flags->quiet, "no line of figures on standard error");
  command->add_flag(
      "--explain", flags->explain,
      "then show prompt and text again, each token coloured by the bits that its keys "
      "and values were kept at; with --json, the last line has the numbers");
  AddGenerationFlags(*command, flags->request);
  AddConnectionFlags(*command, context.flags);
  command->callback([=] {
    const bool missing = prompt->empty() && token_ids->empty();
    context.chosen = [=] {
      return missing ? ReportUsage("generate needs a prompt or --token-ids")
                     : Generate(*flags, context);
    };
  });
}

}  // namespace whit
