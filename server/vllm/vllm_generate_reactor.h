// vllm.grpc.engine.VllmEngine.Generate
#ifndef WHIT_SERVER_VLLM_VLLM_GENERATE_REACTOR_H_
#define WHIT_SERVER_VLLM_VLLM_GENERATE_REACTOR_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/generation_setup.h"
#include "server/service_context.h"
#include "server/stream_reactor.h"
#include "server/vllm/vllm_conversion.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

// Answers with chunks, if the client asked for a stream, and one `complete` for each generation; or
// with a status that is not OK.
class VllmGenerateReactor final : public StreamReactor {
 public:
  VllmGenerateReactor(ServiceContext& context, grpc::CallbackServerContext* rpc);
  void Start(const grpc::ByteBuffer& request);

 private:
  absl::Status Read(const grpc::ByteBuffer& bytes);
  absl::StatusOr<Request> Prepare(int generation);
  void AddMessages(int generation, const TokenSink::Delivery& delivery, const absl::Status& status,
                   Messages& messages) override;

  bool stream_ = false;
  GenerationSetup<v1::GenerateStreamRequest> setup_;
  // Of all generations, but for their seeds; encoded with the first.
  Request request_;
  uint32_t prompt_tokens_ = 0;
  std::vector<vllm::GenerateComplete> outputs_;  // of each generation so far
  // Without a stream, the first generation that has not been answered: the gateway takes their
  // order for their numbers.
  size_t next_ = 0;
};

}  // namespace whit

#endif  // WHIT_SERVER_VLLM_VLLM_GENERATE_REACTOR_H_
