// The calls that go through the engine and answer once: Generate and Score.
#ifndef WHIT_SERVER_UNARY_REACTOR_H_
#define WHIT_SERVER_UNARY_REACTOR_H_

#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "server/call_log.h"
#include "server/engine_call.h"
#include "server/generation_setup.h"
#include "server/service_context.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

// Owns itself; gone after OnDone. Gathers what the engine delivers until it is complete.
class UnaryReactor : public grpc::ServerUnaryReactor {
 public:
  UnaryReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
               grpc::ByteBuffer* response, std::string_view method);

  void OnCancel() override;
  void OnDone() override { delete this; }

 protected:
  void StartCall(const ServingModel& model, size_t text_bytes,
                 std::function<absl::StatusOr<Request>()> prepare);
  void FinishRejected(const absl::Status& status);
  // The answer to a request that ended well.
  virtual void Answer(const TokenSink::Delivery& output, grpc::ByteBuffer* response) = 0;

  ServiceContext& context_;
  grpc::CallbackServerContext* const rpc_;
  CallLog log_;

 private:
  void OnReady();

  grpc::ByteBuffer* const response_;
  std::shared_ptr<EngineCall> call_;  // null if the request was turned away before
  TokenSink::Delivery output_;        // gathered so far; of the delivery thread
};

class GenerateReactor final : public UnaryReactor {
 public:
  GenerateReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
                  grpc::ByteBuffer* response);
  void Start(const grpc::ByteBuffer& request);

 private:
  void Answer(const TokenSink::Delivery& output, grpc::ByteBuffer* response) override;

  GenerationSetup<v1::GenerateRequest> setup_;
};

class ScoreReactor final : public UnaryReactor {
 public:
  ScoreReactor(ServiceContext& context, grpc::CallbackServerContext* rpc,
               grpc::ByteBuffer* response);
  void Start(const grpc::ByteBuffer& request);

 private:
  absl::Status Read(const grpc::ByteBuffer& request);
  absl::StatusOr<std::vector<int32_t>> EncodeContinuation() const;
  absl::StatusOr<Request> Encode();
  void Answer(const TokenSink::Delivery& output, grpc::ByteBuffer* response) override;

  const ServingModel* model_ = nullptr;
  v1::ScoreRequest proto_;
  RequestedPrecision precision_;
};

}  // namespace whit

#endif  // WHIT_SERVER_UNARY_REACTOR_H_
