// LoadMeter: how busy the server has been over the last seconds.
#ifndef WHIT_SERVER_METRICS_LOAD_METER_H_
#define WHIT_SERVER_METRICS_LOAD_METER_H_

#include "absl/time/time.h"

namespace whit {

// Means that forget exponentially, all alike: so requests per second over utilization, by which
// load balancers weight a server, is what it serves per unit of itself. They are right without
// polling, since each change is told.
//
// Threads: one.
class LoadMeter {
 public:
  // From `now` on; in between it does not change.
  void SetUtilization(double utilization, absl::Time now);
  void CountRequest(absl::Time now);
  void CountError(absl::Time now);

  struct Load {
    double utilization = 0;
    double requests_per_second = 0;
    double errors_per_second = 0;
  };
  Load Measure(absl::Time now) const;

 private:
  void Advance(absl::Time now) {
    means_ = Measure(now);
    updated_ = now;
  }

  double utilization_ = 0;  // at present
  Load means_;              // as of updated_
  absl::Time updated_ = absl::InfinitePast();
};

}  // namespace whit

#endif  // WHIT_SERVER_METRICS_LOAD_METER_H_
