#include "tests/eval/plot_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace whit::eval {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(RenderJsonTest, DrawsWhatItIsTold) {
  const auto svg = RenderJson(R"({"title": "Bits", "panels": [
      {"title": "left", "x_label": "layer", "reference": 3, "reference_label": "all",
       "points": [{"series": "adaptive", "label": "first", "x": 0, "y": 4, "low": 3, "high": 5},
                  {"series": "adaptive", "x": 1, "y": 2, "low": null}]},
      {"title": "right", "log_y": true, "points": [{"series": "static", "x": 1, "y": 0}]}]})");
  ASSERT_TRUE(svg.ok()) << svg.status().message();
  for (const char* text : {">Bits<", ">left<", ">layer<", ">all<", ">first<", ">right<"}) {
    EXPECT_THAT(*svg, HasSubstr(text));
  }
  EXPECT_THAT(*svg, HasSubstr("<circle"));
  EXPECT_THAT(*svg, Not(HasSubstr("nan")));
  EXPECT_THAT(*svg, Not(HasSubstr(">-0<")));
}

TEST(RenderJsonTest, NamesWhatItCannotRead) {
  const auto error = [](const char* json) {
    return std::string(RenderJson(json).status().message());
  };
  EXPECT_THAT(error("[1]"), HasSubstr("no JSON object"));
  EXPECT_THAT(error("{"), HasSubstr("no JSON object"));
  EXPECT_THAT(error(R"({"panels": 1})"), HasSubstr("'panels'"));
  EXPECT_THAT(error(R"({"panels": [1]})"), HasSubstr("'panels'"));
  EXPECT_THAT(error(R"({"panels": [{"title": 1}]})"), HasSubstr("'title' must be a text"));
  EXPECT_THAT(error(R"({"panels": [{"points": [{"x": 1}]}]})"), HasSubstr("'y' must be a number"));
  EXPECT_THAT(error(R"({"panels": [{"points": [{"x": 1, "y": 1, "low": "0"}]}]})"),
              HasSubstr("'low'"));
  EXPECT_THAT(error(R"({"panels": [{"log_y": 1}]})"), HasSubstr("'log_y'"));
}

}  // namespace
}  // namespace whit::eval
