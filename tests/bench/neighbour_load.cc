#include "tests/bench/neighbour_load.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace whit {

std::optional<double> NeighbourLoad::Cpus() const {
  const std::optional<Sample> now = Now();
  if (!start_ || !now) return std::nullopt;
  const double others =
      (now->busy_seconds - start_->busy_seconds) - (now->own_seconds - start_->own_seconds);
  return std::max(0.0, others / (now->wall_seconds - start_->wall_seconds));
}

std::optional<NeighbourLoad::Sample> NeighbourLoad::Now() {
  std::ifstream stat("/proc/stat");
  std::string label;
  double user, nice, system, idle, iowait, irq, softirq, steal;
  stat >> label >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal;
  rusage own;
  if (!stat || getrusage(RUSAGE_SELF, &own) != 0) return std::nullopt;
  return Sample{.wall_seconds = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()),
                .busy_seconds = (user + nice + system + irq + softirq + steal) /
                                static_cast<double>(sysconf(_SC_CLK_TCK)),
                .own_seconds = absl::ToDoubleSeconds(absl::DurationFromTimeval(own.ru_utime) +
                                                     absl::DurationFromTimeval(own.ru_stime))};
}

}  // namespace whit
