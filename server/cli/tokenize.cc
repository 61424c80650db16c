// whit tokenize, whit detokenize
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "server/cli/commands.h"
#include "server/cli/json_output.h"

namespace whit {
namespace {

struct TokenizeFlags {
  std::string text;
  bool chat = false;
  v1::TokenizeRequest request;
};

int Tokenize(TokenizeFlags& flags, const CommandContext& context) {
  const std::string text = TextOrStandardInput(flags.text);
  if (flags.chat) {
    v1::ChatMessage& message = *flags.request.mutable_chat()->add_messages();
    message.set_role("user");
    message.set_content(text);
  } else {
    flags.request.set_text(text);
  }
  grpc::ClientContext rpc;
  SetUpCall(context.flags, rpc);
  v1::TokenizeResponse response;
  const grpc::Status status = ConnectStub(context.flags)->Tokenize(&rpc, flags.request, &response);
  if (!status.ok()) return ReportFailure(status, context.flags);
  if (context.flags.json) {
    PrintJson(ToJson(response));
    return kExitOk;
  }
  const char* separator = "";
  for (const uint32_t id : response.token_ids()) {
    std::printf("%s%u", separator, id);
    separator = ",";
  }
  std::printf("\n");
  return kExitOk;
}

int Detokenize(const v1::DetokenizeRequest& request, const CommandContext& context) {
  grpc::ClientContext rpc;
  SetUpCall(context.flags, rpc);
  v1::DetokenizeResponse response;
  const grpc::Status status = ConnectStub(context.flags)->Detokenize(&rpc, request, &response);
  if (!status.ok()) return ReportFailure(status, context.flags);
  if (context.flags.json) {
    PrintJson(ToJson(response));
    return kExitOk;
  }
  std::fwrite(response.text().data(), 1, response.text().size(), stdout);
  std::printf("\n");
  return kExitOk;
}

}  // namespace

void AddTokenize(CLI::App& app, CommandContext context) {
  CLI::App* const command = app.add_subcommand("tokenize", "Text to token ids");
  const auto flags = std::make_shared<TokenizeFlags>();
  command->add_option("text", flags->text, "the text; - reads standard input")->required();
  CLI::Option* const chat =
      command->add_flag("--chat", flags->chat, "as a user's message, in the model's chat format");
  command
      ->add_flag_callback(
          "--parse-special", [flags] { flags->request.set_parse_special(true); },
          "take special tokens written in the text as such")
      ->excludes(chat);
  AddConnectionFlags(*command, context.flags);
  command->callback([=] { context.chosen = [=] { return Tokenize(*flags, context); }; });
}

void AddDetokenize(CLI::App& app, CommandContext context) {
  CLI::App* const command = app.add_subcommand("detokenize", "Token ids to text");
  const auto request = std::make_shared<v1::DetokenizeRequest>();
  command
      ->add_option_function<std::vector<uint32_t>>(
          "token_ids",
          [request](const std::vector<uint32_t>& ids) {
            request->mutable_token_ids()->Add(ids.begin(), ids.end());
          },
          "ids, separated by commas or spaces")
      ->delimiter(',')
      ->type_name("ID,...")
      ->required();
  AddConnectionFlags(*command, context.flags);
  command->callback([=] { context.chosen = [=] { return Detokenize(*request, context); }; });
}

}  // namespace whit
