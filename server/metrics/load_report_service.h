// LoadReportService: xds.service.orca.v3.OpenRcaService, load reports apart from calls. For load
// balancers whose calls last longer than they want to know nothing.
#ifndef WHIT_SERVER_METRICS_LOAD_REPORT_SERVICE_H_
#define WHIT_SERVER_METRICS_LOAD_REPORT_SERVICE_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/time/time.h"
#include "server/service_context.h"
#include "xds/service/orca/v3/orca.grpc.pb.h"

namespace whit {

// The interval that a request gets: what it asks for, within these bounds. Without one it gets the
// shortest.
inline constexpr absl::Duration kMinReportInterval = absl::Milliseconds(500);
inline constexpr absl::Duration kMaxReportInterval = absl::Hours(1);
absl::Duration ReportInterval(const xds::service::orca::v3::OrcaLoadReportRequest& request);

// Threads: gRPC calls the method on its own threads.
class LoadReportService final : public xds::service::orca::v3::OpenRcaService::CallbackService {
 public:
  // `context` outlives the service.
  explicit LoadReportService(ServiceContext& context) : context_(context) {}

  // UNAVAILABLE until the model is loaded.
  grpc::ServerWriteReactor<xds::data::orca::v3::OrcaLoadReport>* StreamCoreMetrics(
      grpc::CallbackServerContext* rpc,
      const xds::service::orca::v3::OrcaLoadReportRequest* request) override;

 private:
  ServiceContext& context_;
};

}  // namespace whit

#endif  // WHIT_SERVER_METRICS_LOAD_REPORT_SERVICE_H_
