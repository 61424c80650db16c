#include "server/logging.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_format.h"
#include "server/log_limiter.h"

namespace whit {
namespace {

// In the order of the enumeration.
constexpr std::array<std::string_view, 4> kLevelNames = {"debug", "info", "warn", "error"};
constexpr std::array<spdlog::level::level_enum, 4> kSpdlogLevels = {
    spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err};

std::atomic<const Logger*> library_logger{nullptr};

void LogFromGrpc(gpr_log_func_args* args) {
  const Logger* logger = library_logger.load(std::memory_order_acquire);
  if (logger == nullptr || args->severity != GPR_LOG_SEVERITY_ERROR) return;
  static LogLimiter limiter;  // each handshake that fails has a line
  const std::optional<int64_t> left_out = limiter.Admit(absl::Now());
  if (!left_out) return;
  std::vector<LogField> fields = {{"message", std::string(args->message)}};
  if (*left_out > 0) fields.push_back({"left_out_before", *left_out});
  logger->Log(LogLevel::kWarn, "grpc", fields);
}

// JSON replaces what is not UTF-8, and its escapes keep any value on one line.
std::string Quoted(const std::string& value) {
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool IsPlainWord(std::string_view value) {
  if (value.empty()) return false;
  for (const char c : value) {
    if (c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\') return false;
  }
  return true;
}

struct RenderValue {
  LogFormat format;
  std::string operator()(const std::string& value) const {
    return format == LogFormat::kText && IsPlainWord(value) ? value : Quoted(value);
  }
  std::string operator()(int64_t value) const { return std::to_string(value); }
  // JSON has no NaN or infinity.
  std::string operator()(double value) const {
    return std::isfinite(value) ? absl::StrFormat("%.6g", value) : "null";
  }
};

}  // namespace

std::string_view LogLevelName(LogLevel level) { return kLevelNames[static_cast<size_t>(level)]; }

std::string_view LogFormatName(LogFormat format) {
  return format == LogFormat::kText ? "text" : "json";
}

absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (kLevelNames[i] == name) return static_cast<LogLevel>(i);
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "'%s' is no log level; the levels are debug, info, warn, error", std::string(name)));
}

absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(
      absl::StrFormat("'%s' is no log format; the formats are text, json", std::string(name)));
}

std::string RenderLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          absl::Span<const LogField> fields) {
  const std::string timestamp = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
  const RenderValue render{format};
  std::string line;
  if (format == LogFormat::kText) {
    line.append(timestamp).append(" ").append(LogLevelName(level)).append(" ").append(event);
    for (const LogField& field : fields) {
      line.append(" ").append(field.name).append("=").append(std::visit(render, field.value));
    }
    return line;
  }
  line.append("{\"time\":\"")
      .append(timestamp)
      .append("\",\"level\":\"")
      .append(LogLevelName(level));
  line.append("\",\"event\":").append(Quoted(std::string(event)));
  for (const LogField& field : fields) {
    line.append(",\"").append(field.name).append("\":").append(std::visit(render, field.value));
  }
  return line.append("}");
}

Logger::Logger(LogLevel level, LogFormat format)
    : format_(format),
      sink_(std::make_unique<spdlog::logger>("whitd",
                                             std::make_shared<spdlog::sinks::stderr_sink_mt>())) {
  sink_->set_pattern("%v");
  sink_->set_level(kSpdlogLevels[static_cast<size_t>(level)]);
  sink_->flush_on(spdlog::level::debug);
}

Logger::~Logger() = default;

void Logger::Log(LogLevel level, std::string_view event, absl::Span<const LogField> fields) const {
  const spdlog::level::level_enum spdlog_level = kSpdlogLevels[static_cast<size_t>(level)];
  if (!sink_->should_log(spdlog_level)) return;
  sink_->log(spdlog_level, "{}", RenderLogLine(format_, absl::Now(), level, event, fields));
}

void AdoptLibraryLogs(const Logger* logger) {
  library_logger.store(logger, std::memory_order_release);
  gpr_set_log_function(LogFromGrpc);
  google::protobuf::SetLogHandler(nullptr);
}

}  // namespace whit
