#include "tests/eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/eval/loaded_model.h"
#include "tests/eval/svg_plot.h"
#include "tests/unit/support/process_temp_dir.h"

namespace whit::eval {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(TableTest, AlignsColumnsByCharacters) {
  Table table({"arm", "Δ"});
  table.AddRow({"fp16", "1.25"});
  EXPECT_EQ(table.ToString(), "arm      Δ\nfp16  1.25\n");
}

TEST(WithIntervalTest, LeavesAnUnknownIntervalOut) {
  EXPECT_EQ(WithInterval("%+.2f", 0.5, {.low = 0.25, .high = 1}), "+0.50 [+0.25, +1.00]");
  EXPECT_EQ(WithInterval("%.1f", 0.5, {.low = NAN, .high = NAN}), "0.5");
}

class WriteTest : public testing::Test {
 protected:
  WriteTest() : path_(ProcessTempDir() + "/whit_eval_report.jsonl") {}
  ~WriteTest() override { std::remove(path_.c_str()); }

  const std::string path_;
  const std::vector<ResultObject> results_ = {
      {{"arm", "random:K2V2=1,K4V4=3"},
       {"kld", 0.5},
       {"ci95", {{"kld", {0.25, NAN}}}},
       {"chunks", {1, 2}}},
      {{"arm", "fp16"}, {"kld", 0}, {"ring", {{"tokens", 32}}}}};
};

TEST_F(WriteTest, CsvFlattensObjectsAndQuotes) {
  ASSERT_TRUE(WriteCsv(path_, results_).ok());
  EXPECT_EQ(*ReadFile(path_),
            "arm,kld,ci95_kld_low,ci95_kld_high,ring_tokens\n"
            "\"random:K2V2=1,K4V4=3\",0.5,0.25,,\n"
            "fp16,0,,,32\n");
}

TEST_F(WriteTest, JsonIsAnArrayOrLines) {
  ASSERT_TRUE(WriteJson(path_, results_).ok());
  const std::string lines = *ReadFile(path_);
  EXPECT_EQ(nlohmann::json::parse(lines.substr(0, lines.find('\n')))["ci95"]["kld"][1], nullptr);

  const std::string array_path = path_ + ".json";
  ASSERT_TRUE(WriteJson(array_path, results_).ok());
  EXPECT_EQ(nlohmann::json::parse(*ReadFile(array_path))[1]["arm"], "fp16");
  std::remove(array_path.c_str());
}

TEST_F(WriteTest, NamesAFileThatCannotBeWritten) {
  const absl::Status status = WriteJson("/nowhere/x.json", results_);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/x.json"));
}

TEST(RenderSvgTest, DrawsWhatCanBeDrawn) {
  const PlotPanel panel = {.title = "a < b & c",
                           .x_label = "bits",
                           .y_label = "KLD",
                           .log_y = true,
                           .points = {{"static", "K4V4", 4.5, 0.004, 0.003, 0.005},
                                      {"static", "K2V2", 2.4, 0.1, NAN, NAN},
                                      {"static", "exact", 16, 0, 0, 0},
                                      {"random", "unknown", NAN, 0.1, 0, 0}}};
  const std::string svg = RenderSvg("Title", {panel, {.title = "empty"}});
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  EXPECT_THAT(svg, HasSubstr(">K4V4</text>"));
  EXPECT_THAT(svg, HasSubstr(">K2V2</text>"));
  EXPECT_THAT(svg, Not(HasSubstr(">exact</text>")));
  EXPECT_THAT(svg, Not(HasSubstr(">unknown</text>")));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));

  // The smaller divergence lies lower, the fewer bits lie to the left.
  const auto coordinate = [&](const char* name, int nth) {
    size_t at = svg.find("r=\"3.5\"");
    for (int i = 0; i < nth; ++i) at = svg.find("r=\"3.5\"", at + 1);
    return std::stod(svg.substr(svg.rfind(name, at) + 4));
  };
  EXPECT_LT(coordinate("cx=\"", 0), coordinate("cx=\"", 1));
  EXPECT_LT(coordinate("cy=\"", 0), coordinate("cy=\"", 1));
}

}  // namespace
}  // namespace whit::eval
