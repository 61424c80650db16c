// EngineMetrics: the engine's snapshot as metrics, made anew for each scrape.
#ifndef WHIT_SERVER_ENGINE_METRICS_H_
#define WHIT_SERVER_ENGINE_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "runtime/engine/engine.h"
#include "server/serving_model.h"

namespace whit {

// The metrics of one snapshot. GetCapacity publishes the same numbers.
std::vector<prometheus::MetricFamily> ToMetricFamilies(const EngineSnapshot& snapshot);

// Threads: any may call.
class EngineMetrics : public prometheus::Collectable {
 public:
  // Null: nothing to show. Waits for a scrape under way.
  void SetModel(const ServingModel* model);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  mutable absl::Mutex mutex_;
  const ServingModel* model_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace whit

#endif  // WHIT_SERVER_ENGINE_METRICS_H_
