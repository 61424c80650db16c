#include "server/metrics/load_report_service.h"

#include <grpcpp/alarm.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/call_log.h"
#include "server/status_conversion.h"

namespace whit {
namespace {

using xds::data::orca::v3::OrcaLoadReport;
using xds::service::orca::v3::OrcaLoadReportRequest;

constexpr std::string_view kMethod = "StreamCoreMetrics";

// One subscriber. Owns itself; gone after OnDone.
//
// It is either writing or waiting for its alarm, and goes from one to the other until it is
// cancelled; whichever is then under way finishes it.
class ReportReactor final : public grpc::ServerWriteReactor<OrcaLoadReport> {
 public:
  ReportReactor(ServiceContext& context, const ServingModel& model, absl::Duration interval,
                grpc::CallbackServerContext& rpc)
      : context_(context),
        model_(model),
        interval_(interval),
        log_(context, LogLevel::kDebug, kMethod, rpc) {}

  void Start() {
    log_.EchoRequestId();
    Write();
  }

  void OnWriteDone(bool ok) override {
    if (!ok || !Wait()) FinishCancelled();
  }

  void OnCancel() override {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
    }
    // From now on no alarm is set, and OnDone waits for this method's end.
    if (alarm_ != nullptr) alarm_->Cancel();
  }

  void OnDone() override { delete this; }

 private:
  void Write() {
    report_ = context_.load.Report(model_.engine());
    StartWrite(&report_);
  }

  void FinishCancelled() {
    Finish(log_.Finish(absl::CancelledError("the client has left"), "cancelled"));
  }

  // False if there is nobody to wait for.
  bool Wait() {
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return false;
    // A new one each time: the last one's callback may not have returned yet.
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(absl::ToChronoTime(absl::Now() + interval_), [this](bool expired) {
      if (expired) {
        Write();
      } else {
        FinishCancelled();
      }
    });
    return true;
  }

  ServiceContext& context_;
  const ServingModel& model_;
  const absl::Duration interval_;
  CallLog log_;
  OrcaLoadReport report_;  // being written

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<grpc::Alarm> alarm_;  // set anew under mutex_ while not cancelled
};

class RefusingReactor final : public grpc::ServerWriteReactor<OrcaLoadReport> {
 public:
  explicit RefusingReactor(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

absl::Duration ReportInterval(const OrcaLoadReportRequest& request) {
  const absl::Duration wanted = absl::Seconds(request.report_interval().seconds()) +
                                absl::Nanoseconds(request.report_interval().nanos());
  return std::clamp(wanted, kMinReportInterval, kMaxReportInterval);
}

grpc::ServerWriteReactor<OrcaLoadReport>* LoadReportService::StreamCoreMetrics(
    grpc::CallbackServerContext* rpc, const OrcaLoadReportRequest* request) {
  const ServingModel* const model = context_.model.load(std::memory_order_acquire);
  if (model == nullptr) {
    CallLog log(context_, LogLevel::kDebug, kMethod, *rpc);
    return new RefusingReactor(log.Refuse(LoadingError()));
  }
  auto* const reactor = new ReportReactor(context_, *model, ReportInterval(*request), *rpc);
  reactor->Start();
  return reactor;
}

}  // namespace whit
