// whit model, whit capacity
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
  SetDeadline(context.flags, rpc);
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

int ShowCapacity(const CommandContext& context) {
  grpc::ClientContext rpc;
  SetDeadline(context.flags, rpc);
  v1::GetCapacityResponse capacity;
  const grpc::Status status =
      ConnectStub(context.flags)->GetCapacity(&rpc, v1::GetCapacityRequest(), &capacity);
  if (!status.ok()) return ReportFailure(status, context.flags);
  if (context.flags.json) {
    PrintJson(ToJson(capacity));
    return kExitOk;
  }
  PrintRow("KV cache", absl::StrFormat("%s, %s used, %s reclaimable, %s reserved",
                                       FormatByteSize(capacity.kv_cache_capacity_bytes()),
                                       FormatByteSize(capacity.kv_cache_used_bytes()),
                                       FormatByteSize(capacity.kv_cache_reclaimable_bytes()),
                                       FormatByteSize(capacity.kv_cache_reserved_bytes())));
  for (const v1::RungUsage& rung : capacity.rungs()) {
    PrintRow("  " + rung.rung(),
             absl::StrFormat("%.0f tokens, %s", rung.tokens(), FormatByteSize(rung.bytes())));
  }
  PrintRow("room for",
           absl::StrFormat("%d tokens (%d at the present precision)",
                           capacity.headroom_tokens_floor(), capacity.headroom_tokens_current()));
  PrintRow("running", absl::StrFormat("%d of %d requests", capacity.requests_running(),
                                      capacity.max_running_requests()));
  PrintRow("waiting",
           absl::StrFormat("%d of %d requests, %d prompt tokens", capacity.requests_waiting(),
                           capacity.max_waiting_requests(), capacity.waiting_prompt_tokens()));
  PrintRow("generating", absl::StrFormat("%.1f tokens/s", capacity.generated_tokens_per_second()));
  if (capacity.draining()) PrintRow("draining", "takes no new requests");
  return kExitOk;
}

}  // namespace

void AddModel(CLI::App& app, CommandContext context) {
  CLI::App* const command = app.add_subcommand("model", "The model that the server has loaded");
  AddConnectionFlags(*command, context.flags);
  command->callback([=] { context.chosen = [=] { return ShowModel(context); }; });
}

void AddCapacity(CLI::App& app, CommandContext context) {
  CLI::App* const command =
      app.add_subcommand("capacity", "How full the server is, and how much more it can take");
  AddConnectionFlags(*command, context.flags);
  command->callback([=] { context.chosen = [=] { return ShowCapacity(context); }; });
}

}  // namespace whit
