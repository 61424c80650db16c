// whit chat
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "server/cli/commands.h"
#include "server/cli/generation_flags.h"
#include "server/cli/stream.h"

namespace whit {
namespace {

struct ChatFlags {
  std::string system;
  v1::GenerateStreamRequest request;
};

void AddMessage(v1::Chat& chat, const std::string& role, const std::string& content) {
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role(role);
  message.set_content(content);
}

// The next line that is not empty; false at the end of input. Ctrl-C at the prompt drops the line.
bool ReadMessage(bool interactive, InterruptHandler& interrupts, std::string& line) {
  const ScopedInterrupt interrupt(interrupts, [interactive] {
    if (!interactive) std::_Exit(kExitInterrupted);
    std::fputs("\n> ", stderr);
  });
  do {
    if (interactive) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line)) return false;
  } while (line.empty());
  return true;
}

int Chat(ChatFlags& flags, const CommandContext& context) {
  const bool interactive = isatty(STDIN_FILENO) == 1;
  const auto stub = ConnectStub(context.flags);
  v1::Chat& chat = *flags.request.mutable_prompt()->mutable_chat();
  if (!flags.system.empty()) AddMessage(chat, "system", flags.system);
  if (interactive) std::fputs("Ctrl-C stops an answer, Ctrl-D ends.\n", stderr);

  int exit_status = kExitOk;
  std::string line;
  while (ReadMessage(interactive, context.interrupts, line)) {
    AddMessage(chat, "user", line);
    const StreamResult result = ShowStream(*stub, flags.request, context.flags, context.interrupts);
    if (result.status.ok() || result.interrupted) {
      // An answer that was stopped is part of the talk as far as it went.
      AddMessage(chat, "assistant", result.text);
      continue;
    }
    exit_status = ReportFailure(result.status, context.flags);
    // As if it had not been said: a shorter message may do.
    chat.mutable_messages()->RemoveLast();
  }
  if (interactive) std::fputc('\n', stderr);
  return interactive ? kExitOk : exit_status;
}

}  // namespace

void AddChat(CLI::App& app, CommandContext context) {
  CLI::App* const command = app.add_subcommand(
      "chat", "Talk with the model: a message a line, with the talk so far as context");
  const auto flags = std::make_shared<ChatFlags>();
  command->add_option("--system", flags->system, "the system message");
  AddGenerationFlags(*command, flags->request);
  AddConnectionFlags(*command, context.flags);
  command->callback([=] { context.chosen = [=] { return Chat(*flags, context); }; });
}

}  // namespace whit
