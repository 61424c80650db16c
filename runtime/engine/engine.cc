#include "runtime/engine/engine.h"

#include <pthread.h>

#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/engine/stepped_engine.h"

namespace whit {

struct Engine::Impl {
  explicit Impl(std::unique_ptr<SteppedEngine> engine)
      : stepped(std::move(engine)), thread([this] { Run(); }) {}

  ~Impl() {
    stepped->queue().Stop();
    thread.join();
  }

  void Run() {
    pthread_setname_np(pthread_self(), "whit-engine");
    while (stepped->queue().AwaitWork()) stepped->Step();
    stepped->Step();  // the queue has stopped: ends what is left
  }

  const std::unique_ptr<SteppedEngine> stepped;
  std::thread thread;  // last: it uses the engine
};

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options, Model& model,
                                                       const Tokenizer& tokenizer,
                                                       EngineObserver observer) {
  absl::StatusOr<std::unique_ptr<SteppedEngine>> stepped =
      SteppedEngine::Create(options, model, tokenizer, std::move(observer), absl::Now);
  if (!stepped.ok()) return stepped.status();
  std::unique_ptr<Engine> engine(new Engine());
  engine->impl_ = std::make_unique<Impl>(*std::move(stepped));
  return engine;
}

Engine::Engine() = default;
Engine::~Engine() = default;

absl::StatusOr<Engine::Ticket> Engine::Admit() {
  if (absl::Status status = impl_->stepped->TakeTicket(); !status.ok()) return status;
  return Ticket(impl_.get());
}

absl::StatusOr<uint64_t> Engine::Submit(Ticket ticket, Request request,
                                        std::shared_ptr<TokenSink> sink) {
  absl::StatusOr<uint64_t> number = impl_->stepped->Submit(std::move(request), std::move(sink));
  if (number.ok()) ticket.engine_ = nullptr;  // the request has its place now
  return number;
}

void Engine::Cancel(uint64_t request_number) { impl_->stepped->queue().Cancel(request_number); }
void Engine::StartDraining() { impl_->stepped->queue().StartDraining(); }
bool Engine::WaitUntilIdle(absl::Time deadline) {
  return impl_->stepped->queue().WaitUntilIdle(deadline);
}
EngineSnapshot Engine::snapshot() const { return impl_->stepped->snapshot(); }
const EngineOptions& Engine::options() const { return impl_->stepped->options(); }

Engine::Ticket::Ticket(Ticket&& other) noexcept : engine_(std::exchange(other.engine_, nullptr)) {}

Engine::Ticket& Engine::Ticket::operator=(Ticket&& other) noexcept {
  std::swap(engine_, other.engine_);
  return *this;
}

Engine::Ticket::~Ticket() {
  if (engine_ != nullptr) engine_->stepped->queue().ReturnTicket();
}

}  // namespace whit
