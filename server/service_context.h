// What every call of the service may use.
#ifndef WHIT_SERVER_SERVICE_CONTEXT_H_
#define WHIT_SERVER_SERVICE_CONTEXT_H_

#include <atomic>
#include <cstddef>

#include "server/active_calls.h"
#include "server/logging.h"
#include "server/metrics/load_report.h"
#include "server/metrics/metrics.h"
#include "server/security/authenticator.h"
#include "server/serving_model.h"
#include "server/work_queue.h"

namespace whit {

// Texts up to this size are tokenized where they arrive, on gRPC's thread: that takes about a
// millisecond. Longer ones take turns on a thread of their own.
inline constexpr size_t kInlineTextBytes = 16 << 10;
// Each waits with its whole message in memory.
inline constexpr size_t kMaxPendingTexts = 64;

// Owned by main; outlives the gRPC server.
struct ServiceContext {
  const Logger& logger;
  Metrics& metrics;
  ActiveCalls& active_calls;
  Authenticator* authenticator = nullptr;  // null: no tokens, so no clients with limits
  LoadReporter load{};
  // Long texts are tokenized here.
  WorkQueue tokenizing{"whit-tokenize"};
  // Tokens go from the engine to the streams here, so that no socket is written on the engine's
  // thread.
  WorkQueue delivering{"whit-deliver"};
  // Null until the model is loaded; what it points to stays until the gRPC server is gone.
  std::atomic<const ServingModel*> model{nullptr};
};

}  // namespace whit

#endif  // WHIT_SERVER_SERVICE_CONTEXT_H_
