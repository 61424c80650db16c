// whitd: the server.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/active_calls.h"
#include "server/flag_values.h"
#include "server/generation_service.h"
#include "server/grpc_server.h"
#include "server/logging.h"
#include "server/metrics/load_report_service.h"
#include "server/metrics/metrics.h"
#include "server/options.h"
#include "server/security/authenticator.h"
#include "server/security/tls_certificate.h"
#include "server/service_context.h"
#include "server/serving_model.h"
#include "server/signal_watcher.h"
#include "server/version.h"
#include "server/vllm/vllm_service.h"

namespace whit {
namespace {

// After the last request has ended, its client still has to be told, and may read slowly.
constexpr absl::Duration kGoodbyeTimeout = absl::Seconds(2);
// For calls that do not go through the engine. Health watches end with it.
constexpr absl::Duration kShortCallTimeout = absl::Milliseconds(100);
// Steps are short; a request that was cancelled ends with the next one.
constexpr absl::Duration kCancelTimeout = absl::Seconds(10);

absl::Status GoingDownError() {
  return absl::UnavailableError("the server went down before the request was done");
}

// What --tls-* and --auth-tokens-file ask for.
struct Security {
  std::unique_ptr<TlsCertificateSource> certificates;
  std::unique_ptr<Authenticator> authenticator;
};

absl::StatusOr<Security> LoadSecurity(const ServerOptions& options, const Logger& logger,
                                      Metrics& metrics) {
  Security security;
  if (!options.tls.certificate.empty()) {
    absl::StatusOr<std::unique_ptr<TlsCertificateSource>> certificates =
        TlsCertificateSource::Create(options.tls, logger, [&metrics](const TlsCertificate& loaded) {
          metrics.SetCertificateExpiry(loaded.not_after);
        });
    if (!certificates.ok()) return certificates.status();
    security.certificates = *std::move(certificates);
  }
  if (!options.auth_tokens_file.empty()) {
    absl::StatusOr<std::unique_ptr<Authenticator>> authenticator =
        Authenticator::Create(options.auth_tokens_file, logger, metrics);
    if (!authenticator.ok()) return authenticator.status();
    security.authenticator = *std::move(authenticator);
  }
  return security;
}

std::string Protection(const ServerOptions& options) {
  std::vector<std::string> parts;
  if (!options.tls.certificate.empty()) {
    parts.push_back(options.tls.client_ca.empty() ? "tls" : "mtls");
  }
  if (!options.auth_tokens_file.empty()) parts.push_back("tokens");
  return parts.empty() ? "none" : absl::StrJoin(parts, "+");
}

void LogReady(const ServerOptions& options, const Logger& logger, const ServingModel& model,
              const GrpcServer& grpc, const std::string& metrics_address,
              absl::Duration start_time) {
  const EngineOptions& engine = model.engine().options();
  logger.Info(
      absl::StrFormat("ready in %.3f s", absl::ToDoubleSeconds(start_time)),
      {{"listen", absl::StrJoin(grpc.addresses, ",")},
       {"protection", Protection(options)},
       {"listen_plaintext",
        grpc.plaintext_addresses.empty() ? "off" : absl::StrJoin(grpc.plaintext_addresses, ",")},
       {"metrics", metrics_address},
       {"model", model.config().name},
       {"context_length", int64_t{model.config().context_length}},
       {"kv_cache_bytes", static_cast<int64_t>(engine.kv_cache_bytes)},
       {"kv_policy", engine.kv_policy.ToString()}});
}

// Refuses new requests, lets running ones finish, and cancels what is left when the time is over.
void Drain(const ServerOptions& options, const Logger& logger, Engine& engine,
           ActiveCalls& active_calls, grpc::Server& server) {
  SetServing(server, false);
  engine.StartDraining();
  const EngineSnapshot snapshot = engine.snapshot();
  logger.Info("draining", {{"running", int64_t{snapshot.running}},
                           {"waiting", int64_t{snapshot.waiting}},
                           {"timeout", absl::FormatDuration(options.drain_timeout)}});
  if (!engine.WaitUntilIdle(absl::Now() + options.drain_timeout)) {
    logger.Warn("the drain timeout is over; cancelling what still runs");
    active_calls.CancelAll(GoingDownError());
    engine.WaitUntilIdle(absl::Now() + kCancelTimeout);
  }
  active_calls.WaitUntilNone(absl::Now() + kGoodbyeTimeout);
  server.Shutdown(absl::ToChronoTime(absl::Now() + kShortCallTimeout));
}

absl::Status Serve(const ServerOptions& options, const Logger& logger, Metrics& metrics,
                   absl::Time start) {
  logger.Info("starting", {{"version", std::string(Version())},
                           {"model", options.model_path},
                           {"threads", int64_t{options.threads}}});
  ActiveCalls active_calls;
  std::atomic<bool> serving{false};
  absl::Notification stop;
  const SignalWatcher signals({SIGTERM, SIGINT}, [&] {
    // Nothing is lost before the first request, and a large model may take long to load.
    if (!serving.load()) std::_Exit(kExitOk);
    if (!stop.HasBeenNotified()) {
      stop.Notify();
      return;
    }
    logger.Warn("another signal; cancelling what still runs");
    active_calls.CancelAll(GoingDownError());
  });

  // Later ones use earlier ones, and go first.
  const absl::StatusOr<Security> security = LoadSecurity(options, logger, metrics);
  if (!security.ok()) return security.status();
  ServiceContext context{.logger = logger,
                         .metrics = metrics,
                         .active_calls = active_calls,
                         .authenticator = security->authenticator.get()};
  std::unique_ptr<ServingModel> model;
  GenerationService service(context);
  VllmService vllm_service(context);
  LoadReportService load_reports(context);
  absl::StatusOr<GrpcServer> grpc =
      StartGrpcServer(options,
                      {.certificates = security->certificates.get(),
                       .authenticator = security->authenticator.get()},
                      {&service, &vllm_service, &load_reports});
  if (!grpc.ok()) return grpc.status();
  AdoptLibraryLogs(&logger);
  std::string metrics_address = "off";
  if (!options.metrics_listen.empty()) {
    const absl::StatusOr<int> port = metrics.Listen(options.metrics_listen);
    if (!port.ok()) {
      grpc->server->Shutdown(absl::ToChronoTime(absl::Now()));
      return port.status();
    }
    const std::string& address = options.metrics_listen;
    metrics_address = absl::StrCat(address.substr(0, address.rfind(':')), ":", *port);
  }

  absl::StatusOr<std::unique_ptr<ServingModel>> loaded =
      ServingModel::Load(options, metrics.observer(), logger);
  if (!loaded.ok()) {
    // Whoever watches the health of the server would keep it up.
    grpc->server->Shutdown(absl::ToChronoTime(absl::Now()));
    return loaded.status();
  }
  model = *std::move(loaded);
  metrics.SetModel(model.get());
  context.model.store(model.get(), std::memory_order_release);
  serving.store(true);
  SetServing(*grpc->server, true);
  metrics.SetServing(true);
  LogReady(options, logger, *model, *grpc, metrics_address, absl::Now() - start);

  stop.WaitForNotification();
  metrics.SetServing(false);
  Drain(options, logger, model->engine(), active_calls, *grpc->server);
  metrics.SetModel(nullptr);
  logger.Info("stopped");
  return absl::OkStatus();
}

}  // namespace
}  // namespace whit

int main(int argc, char** argv) {
  const absl::Time start = absl::Now();
  const whit::ParsedCommandLine command_line = whit::ParseServerOptions(argc, argv);
  if (!command_line.options) {
    const bool is_error = command_line.exit_status != whit::kExitOk;
    std::fputs(command_line.text.c_str(), is_error ? stderr : stdout);
    return command_line.exit_status;
  }
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads the log may go
  const whit::Logger logger(command_line.options->log_level, command_line.options->log_format);
  whit::AdoptLibraryLogs(nullptr);
  whit::Metrics metrics(command_line.options->metrics_compat);
  const absl::Status status = whit::Serve(*command_line.options, logger, metrics, start);
  if (!status.ok()) {
    logger.Error("cannot serve", {{"code", absl::StatusCodeToString(status.code())},
                                  {"error", std::string(status.message())}});
  }
  // All is down but the metrics endpoint, which would take up to two seconds to notice.
  std::_Exit(status.ok() ? whit::kExitOk : whit::kExitCannotServe);
}
