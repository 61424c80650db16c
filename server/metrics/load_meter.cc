#include "server/metrics/load_meter.h"

#include <algorithm>
#include <cmath>

namespace whit {
namespace {

constexpr double kMemorySeconds = 3;

}  // namespace

void LoadMeter::SetUtilization(double utilization, absl::Time now) {
  Advance(now);
  utilization_ = utilization;
}

void LoadMeter::CountRequest(absl::Time now) {
  Advance(now);
  means_.requests_per_second += 1 / kMemorySeconds;
}

void LoadMeter::CountError(absl::Time now) {
  Advance(now);
  means_.errors_per_second += 1 / kMemorySeconds;
}

LoadMeter::Load LoadMeter::Measure(absl::Time now) const {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - updated_));
  const double kept = std::exp(-seconds / kMemorySeconds);
  return {.utilization = kept * means_.utilization + (1 - kept) * utilization_,
          .requests_per_second = kept * means_.requests_per_second,
          .errors_per_second = kept * means_.errors_per_second};
}

}  // namespace whit
