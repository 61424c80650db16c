// The subcommands of `whit`. Each adds itself to the command line and, if it was chosen, puts what
// to run into `chosen`.
#ifndef WHIT_SERVER_CLI_COMMANDS_H_
#define WHIT_SERVER_CLI_COMMANDS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "server/cli/connection.h"
#include "server/cli/interrupt.h"

namespace whit {

// `flags` and `interrupts` outlive the command.
struct CommandContext {
  ConnectionFlags& flags;
  InterruptHandler& interrupts;
  Command& chosen;
};

void AddGenerate(CLI::App& app, CommandContext context);
void AddChat(CLI::App& app, CommandContext context);
void AddScore(CLI::App& app, CommandContext context);
void AddTokenize(CLI::App& app, CommandContext context);
void AddDetokenize(CLI::App& app, CommandContext context);
void AddModel(CLI::App& app, CommandContext context);
void AddCapacity(CLI::App& app, CommandContext context);
void AddHealth(CLI::App& app, CommandContext context);

// The argument, or all of standard input if it is "-".
std::string TextOrStandardInput(const std::string& argument);

}  // namespace whit

#endif  // WHIT_SERVER_CLI_COMMANDS_H_
