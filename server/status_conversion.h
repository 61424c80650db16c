// From the statuses of the runtime to what a gRPC client sees.
#ifndef WHIT_SERVER_STATUS_CONVERSION_H_
#define WHIT_SERVER_STATUS_CONVERSION_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <array>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace whit {

// The start of a message if it is very long: those that name a bad value hold the whole of it, and
// gRPC sends a message as a header, of which it takes a few kilobytes.
std::string ShortMessage(const absl::Status& status);

// The codes of both are the same numbers; the message is the short one. UNKNOWN, which nothing here
// means to return, is INTERNAL.
grpc::Status ToGrpcStatus(const absl::Status& status);

// Why a request was turned away before it got a place: a label in metrics, a field of the log, and
// the trailer whit-reason.
//   invalid, unimplemented, too_large   it can never succeed here
//   configuration                       this server's configuration forbids it
//   queue_full, queue_prompt_tokens     --max-queue-requests, --max-queue-prompt-tokens
//   client_requests, client_queue_prompt_tokens
//                                       its client's limits in --auth-tokens-file
//   unauthenticated                     no token, or an unknown one (no trailer says so)
//   deadline                            it would most likely still wait when its deadline comes
//   tokenizer_busy                      too many long texts wait to be tokenized
//   loading, draining                   the server is starting or going down
//   other                               a defect
inline constexpr std::array<std::string_view, 14> kRejectionReasons = {
    "invalid",         "unimplemented",
    "too_large",       "configuration",
    "queue_full",      "queue_prompt_tokens",
    "client_requests", "client_queue_prompt_tokens",
    "unauthenticated", "deadline",
    "tokenizer_busy",  "loading",
    "draining",        "other"};
std::string RejectionReasonFor(const absl::Status& status);

absl::Status LoadingError();
absl::Status TokenizerBusyError();

// How long whoever was turned away should stay away: what the engine estimates, or a second.
// `draw` in [0, 1) moves it by up to a quarter, so that those who were turned away together do not
// come back together.
absl::Duration PushbackFor(const absl::Status& status, double draw);

// Adds the trailers whit-reason and, where a retry may help, grpc-retry-pushback-ms (for gRPC
// clients with a retry policy) and retry-after (seconds; becomes an HTTP header behind a gateway).
void AddRejectionTrailers(const absl::Status& status, grpc::ServerContextBase& context);

}  // namespace whit

#endif  // WHIT_SERVER_STATUS_CONVERSION_H_
