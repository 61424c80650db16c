#include "server/logging.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace whit {
namespace {

const absl::Time kTime = absl::FromUnixMillis(1764087226123);

TEST(RenderLogLineTest, TextQuotesOnlyWhatNeedsIt) {
  const std::vector<LogField> fields = {{"code", "OK"},
                                        {"error", "not \"good\" enough"},
                                        {"empty", ""},
                                        {"count", int64_t{7}},
                                        {"share", 0.25}};
  EXPECT_EQ(RenderLogLine(LogFormat::kText, kTime, LogLevel::kWarn, "request", fields),
            "2025-11-25T16:13:46.123Z warn request code=OK error=\"not \\\"good\\\" enough\" "
            "empty=\"\" count=7 share=0.25");
}

TEST(RenderLogLineTest, JsonIsAnObject) {
  const std::vector<LogField> fields = {
      {"code", "OK"}, {"count", int64_t{7}}, {"share", 0.25}, {"bad", 0.0 / 0.0}};
  const nlohmann::json line = nlohmann::json::parse(
      RenderLogLine(LogFormat::kJson, kTime, LogLevel::kInfo, "ready in 1 s", fields));
  EXPECT_EQ(line, (nlohmann::json{{"time", "2025-11-25T16:13:46.123Z"},
                                  {"level", "info"},
                                  {"event", "ready in 1 s"},
                                  {"code", "OK"},
                                  {"count", 7},
                                  {"share", 0.25},
                                  {"bad", nullptr}}));
}

TEST(RenderLogLineTest, ValuesNeverBreakTheLine) {
  const std::string nasty = "a\nb\r\x1b[31m\xff\"=";
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    const std::string line =
        RenderLogLine(format, kTime, LogLevel::kInfo, "request", {{{"value", nasty}}});
    for (const char c : line) EXPECT_GE(static_cast<unsigned char>(c), ' ') << line;
  }
}

}  // namespace
}  // namespace whit
