#include "tests/bench/neighbour_load.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace whit {
namespace {

// That a process has used; 0 if there is none.
double CpuSeconds(pid_t pid) {
  clockid_t clock;
  timespec used;
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0) return 0;
  return absl::ToDoubleSeconds(absl::DurationFromTimespec(used));
}

}  // namespace

std::optional<double> NeighbourLoad::Cpus() const {
  const std::optional<Sample> now = Now();
  if (!start_ || !now) return std::nullopt;
  const double others =
      (now->busy_seconds - start_->busy_seconds) - (now->own_seconds - start_->own_seconds);
  return std::max(0.0, others / (now->wall_seconds - start_->wall_seconds));
}

std::optional<NeighbourLoad::Sample> NeighbourLoad::Now() const {
  std::ifstream stat("/proc/stat");
  std::string label;
  double user, nice, system, idle, iowait, irq, softirq, steal;
  stat >> label >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal;
  rusage own;
  if (!stat || getrusage(RUSAGE_SELF, &own) != 0) return std::nullopt;
  double children = 0;
  for (pid_t pid : own_) children += CpuSeconds(pid);
  return Sample{
      .wall_seconds = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()),
      .busy_seconds = (user + nice + system + irq + softirq + steal) /
                      static_cast<double>(sysconf(_SC_CLK_TCK)),
      .own_seconds = children + absl::ToDoubleSeconds(absl::DurationFromTimeval(own.ru_utime) +
                                                      absl::DurationFromTimeval(own.ru_stime))};
}

}  // namespace whit
