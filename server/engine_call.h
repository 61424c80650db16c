// EngineCall: the way of one call through the engine: a place in the queue, tokenizing, submission,
// and its end.
#ifndef WHIT_SERVER_ENGINE_CALL_H_
#define WHIT_SERVER_ENGINE_CALL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "runtime/engine/engine.h"
#include "server/service_context.h"

namespace whit {

// Shared by its reactor, the thread that tokenizes for it, and nobody else.
//
// Threads: all methods may be called from any thread. Of the two callbacks the reactor gets either
// one on_rejected, or one on_ready for each time that Take has something, the last time with a
// completion; on_ready comes on the delivery thread. Take answers every on_ready exactly once:
// so when Take gave the completion, no callback is under way or to come, and the reactor may go.
class EngineCall : public std::enable_shared_from_this<EngineCall> {
 public:
  struct Callbacks {
    std::function<void(const absl::Status&)> on_rejected;
    std::function<void()> on_ready;
  };

  // Both are the log's. `client`: whose limits count; empty: nobody's. `request_id`: by which the
  // call may be cancelled (ActiveCalls).
  EngineCall(ServiceContext& context, Engine& engine, std::string client, std::string request_id,
             Callbacks callbacks);
  ~EngineCall();

  // Takes a place among its client's and in the queue, then calls `prepare` for the request, on
  // another thread if there is much text to tokenize, and submits it.
  void Start(size_t text_bytes, std::function<absl::StatusOr<Request>()> prepare);

  // The client has gone, or the server goes (`reason` then says so): the engine ends the request
  // at its next step. Nothing happens if it has ended already.
  void Cancel(absl::Status reason = absl::CancelledError("the client cancelled the call"));

  const std::string& client() const { return client_; }
  const std::string& request_id() const { return request_id_; }
  const Engine& engine() const { return engine_; }
  TokenSink::Delivery Take();
  // What Cancel was first called with; OK if it was not.
  absl::Status cancel_reason() const;

 private:
  void Reject(const absl::Status& status);
  void PrepareAndSubmit(Engine::Ticket ticket,
                        const std::function<absl::StatusOr<Request>()>& prepare);

  ServiceContext& context_;
  Engine& engine_;
  const std::string client_;
  const std::string request_id_;
  const Callbacks callbacks_;
  // Given back before the client is told of the end: it may send the next request at once. Of
  // whoever starts the call, then of who takes the completion.
  std::optional<ClientUsage::Place> place_;
  const std::shared_ptr<TokenSink> sink_;
  mutable absl::Mutex mutex_;
  absl::Status cancel_reason_ ABSL_GUARDED_BY(mutex_);
  std::optional<uint64_t> request_number_ ABSL_GUARDED_BY(mutex_);  // once submitted
};

}  // namespace whit

#endif  // WHIT_SERVER_ENGINE_CALL_H_
