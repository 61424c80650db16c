// StreamReactor: a call that the engine answers with a stream of messages.
#ifndef WHIT_SERVER_STREAM_REACTOR_H_
#define WHIT_SERVER_STREAM_REACTOR_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/call_log.h"
#include "server/engine_call.h"
#include "server/generation_setup.h"
#include "server/service_context.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

// Owns itself; gone after OnDone. It runs one generation or several of one prompt, each a request
// to the engine; when one fails, so does the call.
//
// At most one write is under way. What the engine makes meanwhile waits, coalesced, in the calls'
// sinks, so a slow client holds up neither the engine nor other clients.
//
// Threads: what the engine has to say comes on the delivery thread, or on the one that tokenizes;
// the overridden methods are called on gRPC's.
class StreamReactor : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  StreamReactor(ServiceContext& context, grpc::CallbackServerContext* rpc, std::string_view method);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { delete this; }

 protected:
  using Messages = std::deque<grpc::ByteBuffer>;

  // Starts generations 0 to `generations` - 1; `prepare` gives the request of one, as in
  // EngineCall::Start. Comes last: the reactor may be gone when it returns.
  void StartGenerations(const ServingModel& model, int generations, size_t text_bytes,
                        const std::function<absl::StatusOr<Request>(int)>& prepare);
  // Instead, for a call that is turned away at once.
  void FinishRejected(const absl::Status& status);

  // Appends what the client is told of a delivery. `status` is that of the generation's end, if the
  // delivery has its completion. Called once at a time.
  virtual void AddMessages(int generation, const TokenSink::Delivery& delivery,
                           const absl::Status& status, Messages& messages) = 0;

  ServiceContext& context_;
  grpc::CallbackServerContext* const rpc_;
  CallLog log_;

 private:
  // A generation was turned away, or else its sink has something.
  struct Event {
    int generation;
    absl::Status rejection;
  };

  void OnEvent(Event event);
  // For whoever is busy: writes what there is to write.
  void WriteNext();
  // For whoever is busy: the next thing to see to; if none, nobody is busy any more.
  std::optional<Event> NextEvent();
  void Handle(const Event& event);
  // The first failure is that of the call.
  void Fail(const absl::Status& status, const grpc::Status& final_status);
  grpc::Status End();

  std::vector<std::shared_ptr<EngineCall>> calls_;  // one a generation; fixed once they start
  // Of whoever is busy.
  Messages messages_;    // the first is being written
  bool broken_ = false;  // a write has failed: the client is gone
  size_t ended_ = 0;     // generations
  absl::Status failure_;
  grpc::Status final_status_;
  bool rejected_ = false;

  absl::Mutex mutex_;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;  // a write is under way or about to be
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
};

// whit.v1.TextGenerationService.GenerateStream
class GenerateStreamReactor final : public StreamReactor {
 public:
  GenerateStreamReactor(ServiceContext& context, grpc::CallbackServerContext* rpc);
  void Start(const grpc::ByteBuffer& request);

 private:
  void AddMessages(int generation, const TokenSink::Delivery& delivery, const absl::Status& status,
                   Messages& messages) override;

  GenerationSetup<v1::GenerateStreamRequest> setup_;
};

}  // namespace whit

#endif  // WHIT_SERVER_STREAM_REACTOR_H_
