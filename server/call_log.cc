#include "server/call_log.h"

#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/request_conversion.h"
#include "server/status_conversion.h"

namespace whit {
namespace {

bool IsDefect(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsUnknown(status);
}

void AddCompletion(const Completion& completion, std::vector<LogField>& fields) {
  fields.push_back({"prompt_tokens", int64_t{completion.prompt_tokens}});
  fields.push_back({"cached_tokens", int64_t{completion.cached_tokens}});
  fields.push_back({"completion_tokens", int64_t{completion.completion_tokens}});
  fields.push_back({"queue_s", absl::ToDoubleSeconds(completion.queue_time)});
  fields.push_back({"prefill_s", absl::ToDoubleSeconds(completion.prefill_time)});
  fields.push_back({"decode_s", absl::ToDoubleSeconds(completion.decode_time)});
  fields.push_back({"kv_bytes", static_cast<int64_t>(completion.kv.true_bytes)});
  fields.push_back({"kv_bits", completion.kv.mean_bits});
}

}  // namespace

CallLog::CallLog(const Logger& logger, LogLevel level, std::string_view method,
                 const grpc::CallbackServerContext& context)
    : logger_(logger),
      level_(level),
      method_(method),
      peer_(context.peer()),
      start_(absl::Now()),
      id_(RandomRequestId()) {}

grpc::Status CallLog::Finish(const absl::Status& status, std::string_view reason,
                             const Completion* completion) const {
  std::vector<LogField> fields = {{"id", id_},
                                  {"method", std::string(method_)},
                                  {"code", absl::StatusCodeToString(status.code())}};
  if (!reason.empty()) fields.push_back({"reason", std::string(reason)});
  if (completion != nullptr) AddCompletion(*completion, fields);
  fields.push_back({"duration_s", absl::ToDoubleSeconds(absl::Now() - start_)});
  fields.push_back({"peer", peer_});
  if (!status.ok()) {
    fields.push_back({"error", ShortMessage(status)});
  }
  logger_.Log(IsDefect(status) ? LogLevel::kError : level_, "request", fields);

  if (!IsDefect(status)) return ToGrpcStatus(status);
  return ToGrpcStatus(absl::InternalError(
      absl::StrCat(status.message(), " (a defect; the server's log has more under id ", id_, ")")));
}

}  // namespace whit
