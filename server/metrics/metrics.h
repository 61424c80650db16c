// Metrics: what Prometheus scrapes. Names and histogram edges are an interface to dashboards and
// alerts.
#ifndef WHIT_SERVER_METRICS_METRICS_H_
#define WHIT_SERVER_METRICS_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"
#include "server/metrics/engine_metrics.h"
#include "server/options.h"

namespace whit {

// Threads: any may call. What the engine's observer records is taken under locks that a scrape
// holds for microseconds; the state of the pool and the queues comes from the engine's own
// snapshot.
class Metrics {
 public:
  explicit Metrics(MetricsCompat compat = MetricsCompat::kNone);

  // Feeds the counters and histograms. This object outlives the engine.
  EngineObserver observer();
  // `reason` is one of kRejectionReasons.
  void CountRejection(std::string_view reason);

  // The certificate that the server shows. Without TLS there is no such figure.
  void SetCertificateExpiry(absl::Time not_after);
  // What grpc.health.v1 says of the server; false at first.
  void SetServing(bool serving) { health_serving_.Set(serving ? 1 : 0); }

  // From now on a scrape shows the model and its engine; null: no longer, and none is being read
  // once this returns.
  void SetModel(const ServingModel* model) { engine_->SetModel(model); }

  // Serves /metrics on HOST:PORT; returns the port, which the system chose if 0 was asked for.
  // UNAVAILABLE if the address cannot be had.
  absl::StatusOr<int> Listen(const std::string& address);

 private:
  void OnStep(const StepReport& report);
  void OnCompletion(const Completion& completion);

  const std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<EngineMetrics> engine_;
  const std::shared_ptr<prometheus::Collectable> process_;

  std::map<std::string, prometheus::Counter*, std::less<>> rejections_;
  std::map<FinishReason, prometheus::Counter*> requests_;
  std::map<std::string_view, prometheus::Counter*> phase_seconds_;
  prometheus::Gauge& health_serving_;
  prometheus::Histogram& engine_step_seconds_;
  prometheus::Histogram& time_to_first_token_seconds_;
  prometheus::Histogram& inter_token_latency_seconds_;
  prometheus::Histogram& request_duration_seconds_;
  prometheus::Histogram& request_queue_seconds_;

  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace whit

#endif  // WHIT_SERVER_METRICS_METRICS_H_
