// What all generations do alike before they reach the engine.
#ifndef WHIT_SERVER_GENERATION_SETUP_H_
#define WHIT_SERVER_GENERATION_SETUP_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/call_log.h"
#include "server/message_bytes.h"
#include "server/request_conversion.h"
#include "server/service_context.h"
#include "server/status_conversion.h"

namespace whit {

// The call's deadline in the engine's terms.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context);

// When the engine ends a call that began at `start`: a twentieth of its time before its deadline,
// at most 200 ms. gRPC sends nothing more once the deadline has passed, and a stream must not end
// without its last message: behind a gateway, HTTP clients see no status.
absl::Time EngineDeadline(absl::Time start, absl::Time deadline);

// True if a call that began at `start` was given up because its deadline passed, rather than
// because its client left: then the engine, which knows the deadline, ends the request itself.
bool DeadlinePassed(const grpc::CallbackServerContext& context, absl::Time start);

// Counts and logs a call that was turned away, adds its trailers, and returns its status.
grpc::Status Reject(const absl::Status& status, ServiceContext& context, CallLog& log,
                    grpc::CallbackServerContext& rpc);

// How a call that went through the engine ended: its completion's status, or why the server
// cancelled it.
absl::Status FinalStatus(const Completion& completion, const absl::Status& cancel_reason);

// `Proto` is GenerateStreamRequest or GenerateRequest.
template <class Proto>
struct GenerationSetup {
  const ServingModel* model = nullptr;
  Proto proto;
  Request request;             // all but the prompt
  PrecisionPolicySpec policy;  // of the request

  absl::Status Read(const grpc::ByteBuffer& bytes, const grpc::CallbackServerContext& rpc,
                    const ServiceContext& context, CallLog& log) {
    if (absl::Status status = ParseMessage(bytes, proto); !status.ok()) return status;
    return Check(rpc, context, log);
  }

  // Everything of `proto` that can be checked before the request has a place in the queue.
  absl::Status Check(const grpc::CallbackServerContext& rpc, const ServiceContext& context,
                     CallLog& log) {
    model = context.model.load(std::memory_order_acquire);
    if (model == nullptr) return LoadingError();
    if (absl::Status status = CheckRequestId(proto.request_id()); !status.ok()) return status;
    if (!proto.request_id().empty()) log.set_request_id(proto.request_id());
    if (absl::Status status = CheckPrompt(proto.prompt(), "prompt", *model); !status.ok()) {
      return status;
    }
    absl::StatusOr<Request> converted = ToEngineRequest(proto, model->engine().options().kv_policy);
    if (!converted.ok()) return converted.status();
    request = *std::move(converted);
    request.id = log.request_id();
    request.deadline = EngineDeadline(log.start(), DeadlineOf(rpc));
    policy = request.kv_policy;
    return absl::OkStatus();
  }

  // Once: the whole request.
  absl::StatusOr<Request> Encode() {
    absl::StatusOr<std::vector<int32_t>> tokens = EncodePrompt(proto.prompt(), "prompt", *model);
    if (!tokens.ok()) return tokens.status();
    request.prompt = *std::move(tokens);
    if (!proto.stopping().has_max_new_tokens()) {
      // The default must not make a prompt fail that fits.
      const auto left =
          model->config().context_length - static_cast<int64_t>(request.prompt.size());
      request.max_new_tokens = std::clamp<int64_t>(left, 1, request.max_new_tokens);
    }
    return std::move(request);
  }
};

}  // namespace whit

#endif  // WHIT_SERVER_GENERATION_SETUP_H_
