// Load reports in ORCA's format, for load balancers: Envoy's and gRPC's client-side weighted round
// robin send a server work in proportion to rps_fractional over application_utilization.
#ifndef WHIT_SERVER_METRICS_LOAD_REPORT_H_
#define WHIT_SERVER_METRICS_LOAD_REPORT_H_

#include <grpcpp/server_context.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "runtime/engine/engine.h"
#include "server/metrics/load_meter.h"
#include "xds/data/orca/v3/orca_load_report.pb.h"

namespace whit {

// What stands closest to its limit: reserved bytes or running requests. While requests wait, what
// is asked for in multiples of what can run: more than 1.
double Utilization(const EngineSnapshot& snapshot, const EngineOptions& options);

xds::data::orca::v3::OrcaLoadReport ToLoadReport(const EngineSnapshot& snapshot,
                                                 const EngineOptions& options,
                                                 const LoadMeter::Load& load);

// Measures the engine's load by being told when it changes.
//
// Threads: any may call.
class LoadReporter {
 public:
  void OnSubmitted(const Engine& engine) { Report(engine); }

  // A call that ran has ended, with `status`. Adds the trailer to it.
  void OnEnded(const Engine& engine, const absl::Status& status, grpc::ServerContextBase& rpc);
  // A call was turned away. Adds the trailer to it.
  void OnRejected(const Engine& engine, const absl::Status& status, grpc::ServerContextBase& rpc);

  // The load up to now.
  xds::data::orca::v3::OrcaLoadReport Report(const Engine& engine);

 private:
  xds::data::orca::v3::OrcaLoadReport ReportLocked(const Engine& engine)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddTrailer(const Engine& engine, grpc::ServerContextBase& rpc)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Snapshots are taken under it, so that the last one told is the newest.
  absl::Mutex mutex_;
  LoadMeter meter_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace whit

#endif  // WHIT_SERVER_METRICS_LOAD_REPORT_H_
