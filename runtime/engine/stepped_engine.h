// SteppedEngine: all of the engine but the thread that takes its steps. Engine runs one; a
// simulation takes the steps itself, by a clock of its own.
#ifndef WHIT_RUNTIME_ENGINE_STEPPED_ENGINE_H_
#define WHIT_RUNTIME_ENGINE_STEPPED_ENGINE_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/engine/admission.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_core.h"
#include "runtime/engine/request.h"
#include "runtime/engine/request_queue.h"
#include "runtime/engine/token_sink.h"
#include "runtime/model/model.h"
#include "runtime/text/tokenizer.h"

namespace whit {

// Threads: any may call, but Step belongs to one thread.
class SteppedEngine {
 public:
  // As Engine::Create. `clock` is the time for all that is timed.
  static absl::StatusOr<std::unique_ptr<SteppedEngine>> Create(const EngineOptions& options,
                                                               Model& model,
                                                               const Tokenizer& tokenizer,
                                                               EngineObserver observer,
                                                               EngineClock clock);

  // Lets one caller in, as Engine::Admit does. Each success is followed by one call of
  // queue().ReturnTicket or one success of Submit.
  absl::Status TakeTicket();
  // As Engine::Submit; on error the ticket is still the caller's.
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<TokenSink> sink);

  void Step() { core_.Step(clock_()); }

  RequestQueue& queue() { return queue_; }
  EngineSnapshot snapshot() const { return core_.snapshot(); }
  const EngineOptions& options() const { return options_; }
  const AdmissionLimits& limits() const { return limits_; }
  const PagePool& pool() const { return core_.pool(); }

 private:
  SteppedEngine(const EngineOptions& options, const AdmissionLimits& limits, Model& model,
                const Tokenizer& tokenizer, std::unique_ptr<PagePool> pool, EngineObserver observer,
                EngineClock clock);

  // A rejection for want of room, with the time after which there may be some.
  absl::Status WithRetryAfter(absl::Status status, const AdmissionDemand& demand) const;

  const EngineOptions options_;
  const AdmissionLimits limits_;
  const ModelConfig& model_;
  const EngineClock clock_;
  RequestQueue queue_;
  EngineCore core_;
};

}  // namespace whit

#endif  // WHIT_RUNTIME_ENGINE_STEPPED_ENGINE_H_
