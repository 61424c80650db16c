// StreamReactor: one GenerateStream call.
#ifndef WHIT_SERVER_STREAM_REACTOR_H_
#define WHIT_SERVER_STREAM_REACTOR_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/call_log.h"
#include "server/engine_call.h"
#include "server/generation_setup.h"
#include "server/service_context.h"
#include "whit/v1/text_generation.pb.h"

namespace whit {

// Owns itself; gone after OnDone.
//
// At most one write is under way. What the engine makes meanwhile waits, coalesced, in the call's
// sink, so a slow client holds up neither the engine nor other clients.
//
// Threads: OnReady comes on the delivery thread, the overridden methods on gRPC's.
class StreamReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  StreamReactor(ServiceContext& context, grpc::CallbackServerContext* rpc);

  void Start(const grpc::ByteBuffer& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  void OnReady();
  // For whoever is busy: takes from the sink what it has been ready for, and writes it.
  void WriteNext();
  // For whoever is busy: whether there is more to take; if not, nobody is busy any more.
  bool StayBusy();
  void WriteLast(v1::GenerateStreamResponse response, const Completion& completion);

  ServiceContext& context_;
  grpc::CallbackServerContext* const rpc_;
  CallLog log_;
  GenerationSetup<v1::GenerateStreamRequest> setup_;
  std::shared_ptr<EngineCall> call_;  // null if the request was turned away before
  // Of whoever is busy.
  grpc::ByteBuffer message_;  // being written
  bool broken_ = false;       // a write has failed: the client is gone

  absl::Mutex mutex_;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;   // a write is under way or about to be
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;  // the sink has more, to be taken after it
};

}  // namespace whit

#endif  // WHIT_SERVER_STREAM_REACTOR_H_
