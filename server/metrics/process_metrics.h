// The standard process_* metrics, read from /proc.
#ifndef WHIT_SERVER_METRICS_PROCESS_METRICS_H_
#define WHIT_SERVER_METRICS_PROCESS_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

namespace whit {

class ProcessMetrics : public prometheus::Collectable {
 public:
  ProcessMetrics();
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  // Told the same each time: a value that trembles with the clocks looks like one restart after
  // another.
  const double boot_seconds_;
};

}  // namespace whit

#endif  // WHIT_SERVER_METRICS_PROCESS_METRICS_H_
