#include "server/metrics/load_report.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace whit {
namespace {

using xds::data::orca::v3::OrcaLoadReport;

constexpr char kTrailer[] = "endpoint-load-metrics-bin";

double Fraction(double part, double whole) {
  return whole > 0 ? std::clamp(part / whole, 0.0, 1.0) : 0;
}

double ReservedFraction(const EngineSnapshot& snapshot) {
  return Fraction(static_cast<double>(snapshot.reserved_bytes),
                  static_cast<double>(snapshot.reservable_bytes));
}

double RunningFraction(const EngineSnapshot& snapshot, const EngineOptions& options) {
  return Fraction(snapshot.running, options.max_running_requests);
}

// Errors that tell of the server, not of the request.
bool IsServersFault(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ||
         absl::IsInternal(status) || absl::IsUnknown(status);
}

}  // namespace

double Utilization(const EngineSnapshot& snapshot, const EngineOptions& options) {
  if (snapshot.waiting > 0) {
    const double running = std::max(snapshot.running, 1);
    return (running + snapshot.waiting) / running;
  }
  return std::max(ReservedFraction(snapshot), RunningFraction(snapshot, options));
}

OrcaLoadReport ToLoadReport(const EngineSnapshot& snapshot, const EngineOptions& options,
                            const LoadMeter::Load& load) {
  OrcaLoadReport report;
  report.set_application_utilization(load.utilization);
  report.set_rps_fractional(load.requests_per_second);
  report.set_eps(load.errors_per_second);
  auto& utilization = *report.mutable_utilization();
  utilization["kv_cache_reserved"] = ReservedFraction(snapshot);
  utilization["kv_cache_used"] = Fraction(static_cast<double>(snapshot.pool.used_bytes),
                                          static_cast<double>(snapshot.pool.capacity_bytes));
  utilization["requests_running"] = RunningFraction(snapshot, options);
  auto& metrics = *report.mutable_named_metrics();
  metrics["requests_running"] = snapshot.running;
  metrics["requests_waiting"] = snapshot.waiting;
  metrics["admission_queue_prompt_tokens"] = static_cast<double>(snapshot.waiting_prompt_tokens);
  metrics["admission_headroom_tokens"] = static_cast<double>(snapshot.headroom_tokens_floor);
  return report;
}

void LoadReporter::OnEnded(const Engine& engine, const absl::Status& status,
                           grpc::ServerContextBase& rpc) {
  absl::MutexLock lock(&mutex_);
  meter_.CountRequest(absl::Now());
  if (IsServersFault(status)) meter_.CountError(absl::Now());
  AddTrailer(engine, rpc);
}

void LoadReporter::OnRejected(const Engine& engine, const absl::Status& status,
                              grpc::ServerContextBase& rpc) {
  absl::MutexLock lock(&mutex_);
  if (IsServersFault(status)) meter_.CountError(absl::Now());
  AddTrailer(engine, rpc);
}

OrcaLoadReport LoadReporter::Report(const Engine& engine) {
  absl::MutexLock lock(&mutex_);
  return ReportLocked(engine);
}

OrcaLoadReport LoadReporter::ReportLocked(const Engine& engine) {
  const EngineSnapshot snapshot = engine.snapshot();
  const absl::Time now = absl::Now();
  meter_.SetUtilization(Utilization(snapshot, engine.options()), now);
  return ToLoadReport(snapshot, engine.options(), meter_.Measure(now));
}

void LoadReporter::AddTrailer(const Engine& engine, grpc::ServerContextBase& rpc) {
  rpc.AddTrailingMetadata(kTrailer, ReportLocked(engine).SerializeAsString());
}

}  // namespace whit
