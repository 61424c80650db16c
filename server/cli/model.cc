// whit model
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/cli/commands.h"
#include "server/cli/json_output.h"
#include "server/flag_values.h"

namespace whit {
namespace {

void PrintRow(const std::string& name, const std::string& value) {
  std::printf("%-18s %s\n", name.c_str(), value.c_str());
}

int ShowModel(const CommandContext& context) {
  grpc::ClientContext rpc;
  SetUpCall(context.flags, rpc);
  v1::GetModelResponse model;
  const grpc::Status status =
      ConnectStub(context.flags)->GetModel(&rpc, v1::GetModelRequest(), &model);
  if (!status.ok()) return ReportFailure(status, context.flags);
  if (context.flags.json) {
    PrintJson(ToJson(model));
    return kExitOk;
  }
  PrintRow("model", model.name());
  PrintRow("architecture", model.architecture());
  PrintRow("parameters", absl::StrFormat("%.1f million", 1e-6 * model.parameters()));
  PrintRow("file", FormatByteSize(model.file_bytes()));
  PrintRow("context", absl::StrCat(model.context_length(), " tokens"));
  PrintRow("vocabulary", absl::StrCat(model.vocabulary_size(), " tokens"));
  PrintRow("shape", absl::StrFormat("%d layers, %d heads, %d KV heads of %d", model.num_layers(),
                                    model.num_heads(), model.num_kv_heads(), model.head_dim()));
  PrintRow("chat format", model.chat_format().empty() ? "none" : model.chat_format());
  PrintRow("KV policy", model.kv_policy());
  PrintRow("server", "whitd " + model.server_version());
  return kExitOk;
}

}  // namespace

void AddModel(CLI::App& app, CommandContext context) {
  CLI::App* const command = app.add_subcommand("model", "The model that the server has loaded");
  AddConnectionFlags(*command, context.flags);
  command->callback([=] { context.chosen = [=] { return ShowModel(context); }; });
}

}  // namespace whit
