// whit: the command-line client.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "server/cli/commands.h"
#include "server/cli/connection.h"
#include "server/cli/interrupt.h"
#include "server/help_formatter.h"
#include "server/version.h"

namespace whit {
namespace {

constexpr char kFooter[] =
    R"(Every subcommand has --help and takes --server=HOST:PORT, --timeout, --retry and --json,
and for a secured server --tls-ca and --token-file.

Examples:
  whit generate "The sky is blue because" --max-new-tokens=64
  whit generate --chat "Why is the sky blue?" --temperature=0.7 --seed=1
  whit chat --system="You answer in one sentence."
  cat notes.txt | whit generate - --json
  whit score "The sky is" " blue"
  whit tokenize "Hello, world" --json
  whit health --wait=60s && whit capacity --watch
  WHIT_TOKEN=... whit generate --server=whit.example:50051 --tls-ca=ca.pem "Hello"

Exit status: 0 done; 1 the server refused or could not be reached; 2 wrong flag; 130 Ctrl-C.
)";

int Main(int argc, char** argv) {
  InterruptHandler interrupts;
  ConnectionFlags flags;
  Command chosen;
  CLI::App app("whit talks to whitd, which streams text from a small language model.", "whit");
  app.set_version_flag("--version", "whit " + std::string(Version()), "Print the version and exit");
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.formatter(std::make_shared<HelpFormatter>());
  app.require_subcommand(1);
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  AddConnectionFlags(app, flags);
  const CommandContext context{flags, interrupts, chosen};
  AddGenerate(app, context);
  AddChat(app, context);
  AddScore(app, context);
  AddTokenize(app, context);
  AddDetokenize(app, context);
  AddModel(app, context);
  AddCapacity(app, context);
  AddHealth(app, context);
  app.footer(kFooter);  // now: subcommands take over what their parent has when they are made
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (const std::string error = CheckConnectionFlags(flags); !error.empty()) {
    return ReportUsage(error);
  }
  const int exit_status = chosen();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::perror("whit: standard output");
    return kExitFailed;
  }
  return exit_status;
}

}  // namespace

}  // namespace whit

int main(int argc, char** argv) { return whit::Main(argc, argv); }
