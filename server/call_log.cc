#include "server/call_log.h"

#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/request_conversion.h"
#include "server/security/server_credentials.h"
#include "server/status_conversion.h"

namespace whit {
namespace {

constexpr char kRequestIdHeader[] = "x-request-id";

// Empty if there is none, or several.
std::string OnlyHeader(const grpc::CallbackServerContext& rpc, const char* name) {
  const auto [first, last] = rpc.client_metadata().equal_range(name);
  if (first == last || std::next(first) != last) return "";
  return std::string(first->second.data(), first->second.size());
}

bool IsDefect(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsUnknown(status);
}

void AddCompletion(const Completion& completion, std::vector<LogField>& fields) {
  fields.push_back({"prompt_tokens", int64_t{completion.prompt_tokens}});
  fields.push_back({"cached_tokens", int64_t{completion.cached_tokens}});
  fields.push_back({"completion_tokens", int64_t{completion.completion_tokens}});
  if (completion.time_to_first_token < absl::InfiniteDuration()) {
    fields.push_back({"ttft_s", absl::ToDoubleSeconds(completion.time_to_first_token)});
  }
  fields.push_back({"queue_s", absl::ToDoubleSeconds(completion.queue_time)});
  fields.push_back({"prefill_s", absl::ToDoubleSeconds(completion.prefill_time)});
  fields.push_back({"decode_s", absl::ToDoubleSeconds(completion.decode_time)});
  fields.push_back({"kv_bytes", static_cast<int64_t>(completion.kv.true_bytes)});
  fields.push_back({"kv_bits", completion.kv.mean_bits});
}

}  // namespace

CallLog::CallLog(const ServiceContext& context, LogLevel level, std::string_view method,
                 grpc::CallbackServerContext& rpc)
    : logger_(context.logger),
      level_(level),
      method_(method),
      rpc_(rpc),
      peer_(rpc.peer()),
      client_(context.authenticator == nullptr
                  ? ""
                  : context.authenticator->ClientName(OnlyHeader(rpc, "authorization"))),
      start_(absl::Now()),
      id_(OnlyHeader(rpc, kRequestIdHeader)),
      trace_(ParseTraceparent(OnlyHeader(rpc, "traceparent"))) {
  if (id_.empty() || !CheckRequestId(id_).ok()) id_ = RandomRequestId();
}

void CallLog::EchoRequestId() {
  if (!std::exchange(echoed_, true)) rpc_.AddInitialMetadata(kRequestIdHeader, id_);
}

grpc::Status CallLog::Finish(const absl::Status& status, std::string_view reason,
                             const Completion* completion) {
  if (status.ok()) {
    EchoRequestId();
  } else if (!std::exchange(echoed_, true)) {
    rpc_.AddTrailingMetadata(kRequestIdHeader, id_);
  }
  std::vector<LogField> fields = {{"id", id_},
                                  {"method", std::string(method_)},
                                  {"code", absl::StatusCodeToString(status.code())}};
  if (!reason.empty()) fields.push_back({"reason", std::string(reason)});
  if (completion != nullptr) AddCompletion(*completion, fields);
  fields.push_back({"duration_s", absl::ToDoubleSeconds(absl::Now() - start_)});
  if (trace_) {
    fields.push_back({"trace_id", trace_->trace_id});
    fields.push_back({"parent_id", trace_->parent_id});
  }
  if (!client_.empty()) fields.push_back({"client", client_});
  if (std::string name = CertificateName(rpc_); !name.empty()) {
    fields.push_back({"certificate", std::move(name)});
  }
  fields.push_back({"peer", peer_});
  if (!status.ok()) {
    fields.push_back({"error", ShortMessage(status)});
  }
  logger_.Log(IsDefect(status) ? LogLevel::kError : level_, "request", fields);

  if (!IsDefect(status)) return ToGrpcStatus(status);
  return ToGrpcStatus(absl::InternalError(
      absl::StrCat(status.message(), " (a defect; the server's log has more under id ", id_, ")")));
}

grpc::Status CallLog::Refuse(const absl::Status& status) {
  AddRejectionTrailers(status, rpc_);
  return Finish(status, RejectionReasonFor(status));
}

}  // namespace whit
