// server: the only folder that knows gRPC, protobuf and Prometheus. It turns API requests into the
// engine's, streams back what the engine makes, and shows its state: health, metrics, logs. It
// holds no sequence and decides nothing about tokens or memory: that is runtime/engine's.
//
// This file: whit.v1.TextGenerationService.
#ifndef WHIT_SERVER_GENERATION_SERVICE_H_
#define WHIT_SERVER_GENERATION_SERVICE_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/service_context.h"
#include "whit/v1/text_generation.grpc.pb.h"

namespace whit {

// All methods take and give bytes, so that a request that does not parse gets an answer of ours.
using RawTextGenerationService = v1::TextGenerationService::WithRawCallbackMethod_GenerateStream<
    v1::TextGenerationService::WithRawCallbackMethod_Generate<
        v1::TextGenerationService::WithRawCallbackMethod_Score<
            v1::TextGenerationService::WithRawCallbackMethod_Tokenize<
                v1::TextGenerationService::WithRawCallbackMethod_Detokenize<
                    v1::TextGenerationService::WithRawCallbackMethod_GetModel<
                        v1::TextGenerationService::WithRawCallbackMethod_GetCapacity<
                            v1::TextGenerationService::Service>>>>>>>;

// Threads: gRPC calls the methods on its own threads; none of them blocks.
class GenerationService final : public RawTextGenerationService {
 public:
  // `context` outlives the service.
  explicit GenerationService(ServiceContext& context) : context_(context) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* rpc,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetCapacity(grpc::CallbackServerContext* rpc,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;

 private:
  ServiceContext& context_;
};

}  // namespace whit

#endif  // WHIT_SERVER_GENERATION_SERVICE_H_
