#include "server/status_conversion.h"

#include "absl/random/random.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/retry_estimate.h"

namespace whit {
namespace {

constexpr size_t kMaxMessageBytes = 500;

}  // namespace

std::string ShortMessage(const absl::Status& status) {
  std::string message(status.message());
  if (message.size() <= kMaxMessageBytes) return message;
  // What is left of a character that is cut goes too.
  size_t end = kMaxMessageBytes;
  while (end > 0 && (message[end] & 0xC0) == 0x80) --end;
  message.resize(end);
  return message + "…";
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::StatusCode code =
      status.code() == absl::StatusCode::kUnknown ? absl::StatusCode::kInternal : status.code();
  return grpc::Status(static_cast<grpc::StatusCode>(code), ShortMessage(status));
}

std::string RejectionReasonFor(const absl::Status& status) {
  if (std::string reason = RejectionReason(status); !reason.empty()) return reason;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return "invalid";
    case absl::StatusCode::kUnimplemented:
      return "unimplemented";
    case absl::StatusCode::kFailedPrecondition:
      return "configuration";
    case absl::StatusCode::kResourceExhausted:
      return "tokenizer_busy";
    case absl::StatusCode::kUnavailable:
      return status == LoadingError() ? "loading" : "draining";
    default:
      return "other";
  }
}

absl::Status LoadingError() { return absl::UnavailableError("the model is being loaded"); }

absl::Status TokenizerBusyError() {
  return absl::ResourceExhaustedError("too many long texts wait to be tokenized");
}

absl::Duration PushbackFor(const absl::Status& status, double draw) {
  return RetryAfter(status).value_or(kDefaultRetryAfter) * (0.75 + 0.5 * draw);
}

void AddRejectionTrailers(const absl::Status& status, grpc::ServerContextBase& context) {
  context.AddTrailingMetadata("whit-reason", RejectionReasonFor(status));
  if (!absl::IsResourceExhausted(status) && !absl::IsUnavailable(status)) return;
  absl::InsecureBitGen random;
  const int64_t pushback_ms =
      absl::ToInt64Milliseconds(PushbackFor(status, absl::Uniform(random, 0.0, 1.0)));
  context.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(pushback_ms));
  context.AddTrailingMetadata("retry-after", std::to_string((pushback_ms + 999) / 1000));
}

}  // namespace whit
