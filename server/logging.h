// Structured logs: one line an event, as text or as JSON, on standard error. Prompts and
// completions never appear in them.
#ifndef WHIT_SERVER_LOGGING_H_
#define WHIT_SERVER_LOGGING_H_

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace spdlog {
class logger;
}

namespace whit {

enum class LogLevel { kDebug, kInfo, kWarn, kError };
enum class LogFormat { kText, kJson };

std::string_view LogLevelName(LogLevel level);
std::string_view LogFormatName(LogFormat format);
absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name);
absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name);

struct LogField {
  std::string_view name;
  std::variant<std::string, int64_t, double> value;
};

// "2026-11-25T16:13:46.123Z info listening address=127.0.0.1:50051", or the same as a JSON object
// with the keys time, level and event. Whatever a value holds, the result is one line.
std::string RenderLogLine(LogFormat format, absl::Time time, LogLevel level, std::string_view event,
                          absl::Span<const LogField> fields);

// Threads: any may log.
class Logger {
 public:
  Logger(LogLevel level, LogFormat format);
  ~Logger();

  void Log(LogLevel level, std::string_view event, absl::Span<const LogField> fields) const;
  void Info(std::string_view event, std::initializer_list<LogField> fields = {}) const {
    Log(LogLevel::kInfo, event, fields);
  }
  void Warn(std::string_view event, std::initializer_list<LogField> fields = {}) const {
    Log(LogLevel::kWarn, event, fields);
  }
  void Error(std::string_view event, std::initializer_list<LogField> fields = {}) const {
    Log(LogLevel::kError, event, fields);
  }

 private:
  const LogFormat format_;
  const std::unique_ptr<spdlog::logger> sink_;
};

// gRPC and protobuf log through process-wide hooks. Sends gRPC's errors to `logger`, within limits,
// which must outlive every use of gRPC, and silences protobuf, whose parse errors are answered to
// the client.
void AdoptLibraryLogs(const Logger* logger);

}  // namespace whit

#endif  // WHIT_SERVER_LOGGING_H_
