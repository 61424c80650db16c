#include "server/metrics/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>

namespace whit {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

struct ProcStat {
  double cpu_seconds = 0;
  double threads = 0;
  double start_seconds_after_boot = 0;
  double virtual_bytes = 0;
  double resident_bytes = 0;
};

// Fields are numbered as in proc(5); the second, the program's name, may itself hold spaces and
// ")".
std::optional<ProcStat> ReadProcStat() {
  std::ifstream file("/proc/self/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  std::string state;
  fields >> state;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const double page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
  ProcStat stat;
  for (int number = 4; number <= 24; ++number) {
    double value = 0;
    if (!(fields >> value)) return std::nullopt;
    if (number == 14 || number == 15) stat.cpu_seconds += value / ticks;
    if (number == 20) stat.threads = value;
    if (number == 22) stat.start_seconds_after_boot = value / ticks;
    if (number == 23) stat.virtual_bytes = value;
    if (number == 24) stat.resident_bytes = value * page_bytes;
  }
  return stat;
}

// Seconds from the epoch to the machine's boot.
double BootSeconds() {
  timespec now{}, since_boot{};
  clock_gettime(CLOCK_REALTIME, &now);
  clock_gettime(CLOCK_BOOTTIME, &since_boot);
  return static_cast<double>(now.tv_sec - since_boot.tv_sec) +
         1e-9 * static_cast<double>(now.tv_nsec - since_boot.tv_nsec);
}

MetricFamily Family(const std::string& name, const std::string& help, MetricType type,
                    double value) {
  ClientMetric metric;
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return {"process_" + name, help, type, {metric}};
}

}  // namespace

ProcessMetrics::ProcessMetrics() : boot_seconds_(BootSeconds()) {}

std::vector<MetricFamily> ProcessMetrics::Collect() const {
  std::vector<MetricFamily> families;
  if (const std::optional<ProcStat> stat = ReadProcStat()) {
    families.push_back(Family("cpu_seconds_total", "User and system CPU time", MetricType::Counter,
                              stat->cpu_seconds));
    families.push_back(Family("start_time_seconds", "Start time since the epoch", MetricType::Gauge,
                              boot_seconds_ + stat->start_seconds_after_boot));
    families.push_back(
        Family("virtual_memory_bytes", "Address space", MetricType::Gauge, stat->virtual_bytes));
    families.push_back(Family("resident_memory_bytes", "Memory that is resident", MetricType::Gauge,
                              stat->resident_bytes));
    families.push_back(Family("threads", "Threads", MetricType::Gauge, stat->threads));
  }
  std::error_code error;
  const std::filesystem::directory_iterator open_files("/proc/self/fd", error);
  if (!error) {
    families.push_back(
        Family("open_fds", "Open file descriptors", MetricType::Gauge,
               static_cast<double>(std::distance(begin(open_files), end(open_files)))));
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.push_back(Family("max_fds", "Most file descriptors that may be open",
                              MetricType::Gauge, static_cast<double>(limit.rlim_cur)));
  }
  return families;
}

}  // namespace whit
