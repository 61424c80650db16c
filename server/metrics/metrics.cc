#include "server/metrics/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>
#include <exception>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/metrics/process_metrics.h"
#include "server/response_conversion.h"
#include "server/status_conversion.h"

namespace whit {
namespace {

using Edges = prometheus::Histogram::BucketBoundaries;

// In seconds. Those of the first two are those of other inference servers, so that dashboards
// compare.
Edges TimeToFirstTokenEdges() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,
          .75,  1,    2.5, 5,   7.5, 10,  20,  40, 80,  160};
}
Edges InterTokenLatencyEdges() {
  return {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5};
}
Edges StepEdges() { return {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}; }
Edges RequestEdges() {
  return {.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640};
}

// Where the time of a pass of the engine goes.
struct Phase {
  std::string_view name;
  absl::Duration (*time)(const StepReport& report);
};
constexpr Phase kPhases[] = {
    {"matmul", [](const StepReport& report) { return report.forward.matmul; }},
    {"attention", [](const StepReport& report) { return report.forward.attention; }},
    {"quantize", [](const StepReport& report) { return report.forward.quantize; }},
    {"logits", [](const StepReport& report) { return report.forward.logits; }},
    {"relief", [](const StepReport& report) { return report.relief; }},
    {"sampling", [](const StepReport& report) { return report.sampling; }},
};
constexpr std::string_view kOtherPhase = "other";

prometheus::Histogram& AddHistogram(prometheus::Registry& registry, const std::string& name,
                                    const std::string& help, const Edges& edges) {
  return prometheus::BuildHistogram()
      .Name("whit_" + name)
      .Help(help)
      .Register(registry)
      .Add({}, edges);
}

}  // namespace

Metrics::Metrics(MetricsCompat compat)
    : registry_(std::make_shared<prometheus::Registry>()),
      engine_(std::make_shared<EngineMetrics>(compat)),
      process_(std::make_shared<ProcessMetrics>()),
      health_serving_(prometheus::BuildGauge()
                          .Name("whit_health_serving")
                          .Help("1 while grpc.health.v1 says SERVING; 0 while the model is loaded "
                                "and while the server drains")
                          .Register(*registry_)
                          .Add({})),
      engine_step_seconds_(AddHistogram(*registry_, "engine_step_seconds",
                                        "Duration of one pass of the engine", StepEdges())),
      time_to_first_token_seconds_(AddHistogram(*registry_, "time_to_first_token_seconds",
                                                "From a request's submission to its first token",
                                                TimeToFirstTokenEdges())),
      inter_token_latency_seconds_(AddHistogram(*registry_, "inter_token_latency_seconds",
                                                "Between two tokens of one request",
                                                InterTokenLatencyEdges())),
      request_duration_seconds_(AddHistogram(*registry_, "request_duration_seconds",
                                             "From a request's submission to its end",
                                             RequestEdges())),
      request_queue_seconds_(AddHistogram(*registry_, "request_queue_seconds",
                                          "What a request waited before it ran", RequestEdges())) {
  // All label values exist from the start, so that rates of rare events are right.
  auto& phases = prometheus::BuildCounter()
                     .Name("whit_engine_phase_seconds_total")
                     .Help(
                         "Where the time of the engine's passes goes: products with weights, "
                         "attention, quantizing, products for logits, relieving a full cache, "
                         "sampling, and the rest")
                     .Register(*registry_);
  const auto add_phase = [&](std::string_view name) {
    phase_seconds_[name] = &phases.Add({{"phase", std::string(name)}});
  };
  for (const Phase& phase : kPhases) add_phase(phase.name);
  add_phase(kOtherPhase);
  auto& rejections = prometheus::BuildCounter()
                         .Name("whit_admission_rejections_total")
                         .Help("Requests turned away before they ran")
                         .Register(*registry_);
  for (const std::string_view reason : kRejectionReasons) {
    rejections_[std::string(reason)] = &rejections.Add({{"reason", std::string(reason)}});
  }
  auto& requests = prometheus::BuildCounter()
                       .Name("whit_requests_total")
                       .Help("Requests that ended, by why they ended")
                       .Register(*registry_);
  for (const FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kCancelled,
        FinishReason::kDeadline, FinishReason::kError}) {
    requests_[reason] = &requests.Add({{"finish_reason", std::string(FinishReasonName(reason))}});
  }
}

EngineObserver Metrics::observer() {
  return {.on_step = [this](const StepReport& report) { OnStep(report); },
          .on_completion = [this](const Completion& completion) { OnCompletion(completion); }};
}

void Metrics::OnStep(const StepReport& report) {
  engine_step_seconds_.Observe(absl::ToDoubleSeconds(report.duration));
  absl::Duration other = report.duration;
  for (const Phase& phase : kPhases) {
    const absl::Duration time = phase.time(report);
    phase_seconds_.at(phase.name)->Increment(absl::ToDoubleSeconds(time));
    other -= time;
  }
  // Parts and whole are measured by different clocks.
  phase_seconds_.at(kOtherPhase)->Increment(std::max(0.0, absl::ToDoubleSeconds(other)));
  for (const absl::Duration latency : report.inter_token_latencies) {
    inter_token_latency_seconds_.Observe(absl::ToDoubleSeconds(latency));
  }
}

void Metrics::OnCompletion(const Completion& completion) {
  requests_.at(completion.reason)->Increment();
  const absl::Duration total =
      completion.queue_time + completion.prefill_time + completion.decode_time;
  request_duration_seconds_.Observe(absl::ToDoubleSeconds(total));
  request_queue_seconds_.Observe(absl::ToDoubleSeconds(completion.queue_time));
  if (completion.time_to_first_token < absl::InfiniteDuration()) {
    time_to_first_token_seconds_.Observe(absl::ToDoubleSeconds(completion.time_to_first_token));
  }
}

void Metrics::CountRejection(std::string_view reason) {
  const auto counter = rejections_.find(reason);
  (counter == rejections_.end() ? rejections_.at("other") : counter->second)->Increment();
}

void Metrics::SetCertificateExpiry(absl::Time not_after) {
  prometheus::BuildGauge()
      .Name("whit_tls_certificate_expiry_timestamp_seconds")
      .Help("When the certificate in use expires, in seconds since 1970")
      .Register(*registry_)
      .Add({})
      .Set(absl::ToDoubleSeconds(not_after - absl::UnixEpoch()));
}

absl::StatusOr<int> Metrics::Listen(const std::string& address) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", error.what()));
  }
  for (const std::shared_ptr<prometheus::Collectable>& source :
       {std::static_pointer_cast<prometheus::Collectable>(registry_),
        std::static_pointer_cast<prometheus::Collectable>(engine_), process_}) {
    exposer_->RegisterCollectable(source);
  }
  return exposer_->GetListeningPorts().front();
}

}  // namespace whit
