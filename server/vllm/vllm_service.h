// vllm.grpc.engine.VllmEngine: how the gateway smg speaks to engines. It tokenizes, applies the
// chat template and speaks HTTP; Whit sees token ids.
#ifndef WHIT_SERVER_VLLM_VLLM_SERVICE_H_
#define WHIT_SERVER_VLLM_VLLM_SERVICE_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/call_once.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/service_context.h"
#include "server/vllm/tokenizer_archive.h"
#include "vllm/grpc/engine/vllm_engine.grpc.pb.h"

namespace whit {

// As in GenerationService, the methods take and give bytes.
using VllmEngine = ::vllm::grpc::engine::VllmEngine;
using RawVllmService = VllmEngine::WithRawCallbackMethod_Generate<
    VllmEngine::WithRawCallbackMethod_Abort<VllmEngine::WithRawCallbackMethod_HealthCheck<
        VllmEngine::WithRawCallbackMethod_GetModelInfo<
            VllmEngine::WithRawCallbackMethod_GetServerInfo<
                VllmEngine::WithRawCallbackMethod_GetLoads<
                    VllmEngine::WithRawCallbackMethod_GetTokenizer<VllmEngine::Service>>>>>>>;

// Threads: gRPC calls the methods on its own threads; none of them blocks.
class VllmService final : public RawVllmService {
 public:
  // `context` outlives the service.
  explicit VllmService(ServiceContext& context) : context_(context) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* rpc,
                                                       const grpc::ByteBuffer* request) override;
  // Ends calls of the same client by their request ids, whichever service they came to.
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  // Not healthy while the model is being loaded and while the server drains.
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* rpc,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* rpc,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* rpc,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  // The archive is made when it is first asked for, and kept.
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetTokenizer(
      grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request) override;

 private:
  const TokenizerArchive& Archive(const ServingModel& model);

  ServiceContext& context_;
  const absl::Time start_ = absl::Now();
  absl::once_flag archive_made_;
  TokenizerArchive archive_;
};

}  // namespace whit

#endif  // WHIT_SERVER_VLLM_VLLM_SERVICE_H_
