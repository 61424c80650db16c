#include "server/vllm/vllm_service.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/call_log.h"
#include "server/message_bytes.h"
#include "server/status_conversion.h"
#include "server/unary_answer.h"
#include "server/vllm/vllm_conversion.h"
#include "server/vllm/vllm_generate_reactor.h"

namespace whit {
namespace {

// Of the archive, in one message.
constexpr size_t kChunkBytes = 64 << 10;

// GetTokenizer. Owns itself; gone after OnDone.
class ArchiveReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  ArchiveReactor(const ServiceContext& context, grpc::CallbackServerContext& rpc)
      : log_(context, LogLevel::kInfo, "VllmEngine.GetTokenizer", rpc) {}

  void Refuse(const absl::Status& status) { Finish(log_.Refuse(status)); }

  // `archive` outlives the reactor.
  void Send(const TokenizerArchive& archive) {
    archive_ = &archive;
    log_.EchoRequestId();
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Finish(log_.Finish(absl::CancelledError("the client cancelled the call")));
    } else if (sent_ == archive_->zip.size()) {
      Finish(log_.Finish(absl::OkStatus()));
    } else {
      WriteNext();
    }
  }

  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    vllm::GetTokenizerChunk chunk;
    const std::string_view data = std::string_view(archive_->zip).substr(sent_, kChunkBytes);
    chunk.set_data(data.data(), data.size());
    sent_ += data.size();
    if (sent_ == archive_->zip.size()) chunk.set_sha256(archive_->sha256);
    message_ = SerializeMessage(chunk);
    StartWrite(&message_);
  }

  CallLog log_;
  const TokenizerArchive* archive_ = nullptr;
  size_t sent_ = 0;
  grpc::ByteBuffer message_;  // being written
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* VllmService::Generate(grpc::CallbackServerContext* rpc,
                                                                  const grpc::ByteBuffer* request) {
  auto* const reactor = new VllmGenerateReactor(context_, rpc);
  reactor->Start(*request);
  return reactor;
}

grpc::ServerUnaryReactor* VllmService::Abort(grpc::CallbackServerContext* rpc,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = rpc->DefaultReactor();
  CallLog log(context_, LogLevel::kInfo, "VllmEngine.Abort", *rpc);
  vllm::AbortRequest abort;
  absl::Status status = ParseMessage(*request, abort);
  if (context_.model.load(std::memory_order_acquire) == nullptr) status = LoadingError();
  if (!status.ok()) {
    reactor->Finish(log.Refuse(status));
    return reactor;
  }
  context_.active_calls.Cancel(log.client(),
                               {abort.request_ids().begin(), abort.request_ids().end()},
                               absl::CancelledError("the client aborted the request"));
  *response = SerializeMessage(vllm::AbortResponse());
  reactor->Finish(log.Finish(absl::OkStatus()));
  return reactor;
}

grpc::ServerUnaryReactor* VllmService::HealthCheck(grpc::CallbackServerContext* rpc,
                                                   const grpc::ByteBuffer*,
                                                   grpc::ByteBuffer* response) {
  const ServingModel* const model = context_.model.load(std::memory_order_acquire);
  vllm::HealthCheckResponse health;
  if (model == nullptr) {
    health.set_message(std::string(LoadingError().message()));
  } else if (model->engine().snapshot().draining) {
    health.set_message("the server is draining");
  } else {
    health.set_healthy(true);
  }
  *response = SerializeMessage(health);
  grpc::ServerUnaryReactor* const reactor = rpc->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

// Gateways poll the three below, or ask often: they would drown the log.

grpc::ServerUnaryReactor* VllmService::GetModelInfo(grpc::CallbackServerContext* rpc,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  const auto answer = [](const vllm::GetModelInfoRequest&,
                         const ServingModel& model) -> absl::StatusOr<vllm::GetModelInfoResponse> {
    return ToModelInfo(model);
  };
  return Answer<vllm::GetModelInfoRequest>(context_, "VllmEngine.GetModelInfo", LogLevel::kDebug,
                                           rpc, *request, response, answer);
}

grpc::ServerUnaryReactor* VllmService::GetServerInfo(grpc::CallbackServerContext* rpc,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  const auto answer =
      [this](const vllm::GetServerInfoRequest&,
             const ServingModel& model) -> absl::StatusOr<vllm::GetServerInfoResponse> {
    const Engine& engine = model.engine();
    return ToServerInfo(engine.snapshot(), engine.options(), absl::Now() - start_);
  };
  return Answer<vllm::GetServerInfoRequest>(context_, "VllmEngine.GetServerInfo", LogLevel::kDebug,
                                            rpc, *request, response, answer);
}

grpc::ServerUnaryReactor* VllmService::GetLoads(grpc::CallbackServerContext* rpc,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  const auto answer = [](const vllm::GetLoadsRequest&,
                         const ServingModel& model) -> absl::StatusOr<vllm::GetLoadsResponse> {
    const Engine& engine = model.engine();
    return ToLoads(engine.snapshot(), engine.options(), absl::Now());
  };
  return Answer<vllm::GetLoadsRequest>(context_, "VllmEngine.GetLoads", LogLevel::kDebug, rpc,
                                       *request, response, answer);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* VllmService::GetTokenizer(
    grpc::CallbackServerContext* rpc, const grpc::ByteBuffer*) {
  auto* const reactor = new ArchiveReactor(context_, *rpc);
  const ServingModel* const model = context_.model.load(std::memory_order_acquire);
  if (model == nullptr) {
    reactor->Refuse(LoadingError());
  } else if (!context_.tokenizing.TryPost(
                 [this, reactor, model] { reactor->Send(Archive(*model)); }, kMaxPendingTexts)) {
    reactor->Refuse(TokenizerBusyError());
  }
  return reactor;
}

const TokenizerArchive& VllmService::Archive(const ServingModel& model) {
  absl::call_once(archive_made_,
                  [&] { archive_ = MakeTokenizerArchive(model.config(), model.tokenizer()); });
  return archive_;
}

}  // namespace whit
