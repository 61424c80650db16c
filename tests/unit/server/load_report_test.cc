#include "server/metrics/load_report.h"

#include <gtest/gtest.h>

#include "server/metrics/load_report_service.h"

namespace whit {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();

EngineOptions Options() {
  EngineOptions options;
  options.max_running_requests = 10;
  return options;
}

EngineSnapshot Snapshot(size_t reserved_bytes, int running, int waiting) {
  EngineSnapshot snapshot;
  snapshot.pool.capacity_bytes = 1000;
  snapshot.pool.used_bytes = 150;
  snapshot.reserved_bytes = reserved_bytes;
  snapshot.reservable_bytes = 800;
  snapshot.running = running;
  snapshot.waiting = waiting;
  snapshot.waiting_prompt_tokens = 77;
  snapshot.headroom_tokens_floor = 88;
  return snapshot;
}

TEST(UtilizationTest, IsWhatStandsClosestToItsLimit) {
  EXPECT_EQ(Utilization({}, Options()), 0);
  EXPECT_EQ(Utilization(Snapshot(0, 0, 0), Options()), 0);
  EXPECT_EQ(Utilization(Snapshot(240, 2, 0), Options()), 0.3);
  EXPECT_EQ(Utilization(Snapshot(240, 5, 0), Options()), 0.5);
  EXPECT_EQ(Utilization(Snapshot(800, 10, 0), Options()), 1);
}

TEST(UtilizationTest, IsMoreThanOneWhileRequestsWait) {
  EXPECT_EQ(Utilization(Snapshot(700, 4, 1), Options()), 1.25);
  EXPECT_EQ(Utilization(Snapshot(700, 4, 8), Options()), 3);
}

TEST(LoadMeterTest, UtilizationIsAMeanOverTheLastSeconds) {
  LoadMeter meter;
  EXPECT_EQ(meter.Measure(kStart).utilization, 0);
  meter.SetUtilization(0.5, kStart);
  EXPECT_EQ(meter.Measure(kStart).utilization, 0);
  const double soon = meter.Measure(kStart + absl::Milliseconds(100)).utilization;
  EXPECT_GT(soon, 0);  // a report of a short call is not nothing
  EXPECT_LT(soon, 0.05);
  EXPECT_NEAR(meter.Measure(kStart + absl::Minutes(1)).utilization, 0.5, 1e-6);
  meter.SetUtilization(0, kStart + absl::Minutes(1));
  EXPECT_NEAR(meter.Measure(kStart + absl::Minutes(1)).utilization, 0.5, 1e-6);
  EXPECT_NEAR(meter.Measure(kStart + absl::Minutes(2)).utilization, 0, 1e-6);
  // Half of the time at 1.
  absl::Time now = kStart + absl::Minutes(2);
  for (int i = 0; i < 10'000; ++i, now += absl::Milliseconds(10)) meter.SetUtilization(i % 2, now);
  EXPECT_NEAR(meter.Measure(now).utilization, 0.5, 0.01);
}

TEST(LoadMeterTest, CountsPerSecond) {
  LoadMeter meter;
  absl::Time now = kStart;
  for (int i = 0; i < 1000; ++i, now += absl::Milliseconds(50)) {
    meter.CountRequest(now);
    if (i % 10 == 0) meter.CountError(now);
  }
  EXPECT_NEAR(meter.Measure(now).requests_per_second, 20, 0.5);
  EXPECT_NEAR(meter.Measure(now).errors_per_second, 2, 0.2);
  EXPECT_NEAR(meter.Measure(now + absl::Minutes(1)).requests_per_second, 0, 1e-6);
  // A clock that was set back does no harm.
  EXPECT_NEAR(meter.Measure(now - absl::Hours(1)).requests_per_second, 20, 0.5);
}

TEST(ToLoadReportTest, TellsLoadAndWhatItIsMadeOf) {
  const xds::data::orca::v3::OrcaLoadReport report =
      ToLoadReport(Snapshot(240, 5, 2), Options(),
                   {.utilization = 1.5, .requests_per_second = 12, .errors_per_second = 0.5});
  EXPECT_EQ(report.application_utilization(), 1.5);
  EXPECT_EQ(report.rps_fractional(), 12);
  EXPECT_EQ(report.eps(), 0.5);
  EXPECT_EQ(report.utilization().at("kv_cache_reserved"), 0.3);
  EXPECT_EQ(report.utilization().at("kv_cache_used"), 0.15);
  EXPECT_EQ(report.utilization().at("requests_running"), 0.5);
  EXPECT_EQ(report.named_metrics().at("requests_running"), 5);
  EXPECT_EQ(report.named_metrics().at("requests_waiting"), 2);
  EXPECT_EQ(report.named_metrics().at("admission_queue_prompt_tokens"), 77);
  EXPECT_EQ(report.named_metrics().at("admission_headroom_tokens"), 88);
}

TEST(ReportIntervalTest, IsWhatIsAskedForWithinBounds) {
  xds::service::orca::v3::OrcaLoadReportRequest request;
  EXPECT_EQ(ReportInterval(request), kMinReportInterval);
  request.mutable_report_interval()->set_seconds(10);
  EXPECT_EQ(ReportInterval(request), absl::Seconds(10));
  request.mutable_report_interval()->set_nanos(500'000'000);
  EXPECT_EQ(ReportInterval(request), absl::Milliseconds(10'500));
  request.mutable_report_interval()->set_seconds(-3);
  EXPECT_EQ(ReportInterval(request), kMinReportInterval);
  request.mutable_report_interval()->set_seconds(int64_t{1} << 62);
  EXPECT_EQ(ReportInterval(request), kMaxReportInterval);
}

}  // namespace
}  // namespace whit
