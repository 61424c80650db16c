// EngineMetrics: the engine's snapshot as metrics, made anew for each scrape.
#ifndef WHIT_SERVER_METRICS_ENGINE_METRICS_H_
#define WHIT_SERVER_METRICS_ENGINE_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "runtime/engine/engine.h"
#include "server/options.h"
#include "server/serving_model.h"

namespace whit {

// The metrics of one snapshot. GetCapacity publishes the same numbers.
std::vector<prometheus::MetricFamily> ToMetricFamilies(const EngineSnapshot& snapshot,
                                                       const EngineOptions& options, int head_dim);
// The gauges by which the Gateway API Inference Extension picks a server, under vLLM's names. What
// they count is what admission counts: promises at the floor rung, not the bytes in use, which
// yield. So a server is full for the gateway exactly when it would let a request wait.
std::vector<prometheus::MetricFamily> ToVllmMetricFamilies(const EngineSnapshot& snapshot,
                                                           const std::string& model_name);

// Threads: any may call.
class EngineMetrics : public prometheus::Collectable {
 public:
  explicit EngineMetrics(MetricsCompat compat) : compat_(compat) {}

  // Null: nothing to show. Waits for a scrape under way.
  void SetModel(const ServingModel* model);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const MetricsCompat compat_;
  mutable absl::Mutex mutex_;
  const ServingModel* model_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace whit

#endif  // WHIT_SERVER_METRICS_ENGINE_METRICS_H_
