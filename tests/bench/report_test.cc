#include "tests/bench/report.h"

#include "gtest/gtest.h"

namespace whit {
namespace {

Row Compared() {
  return {.name = "prefill_512",
          .value = 1000,
          .unit = "tok/s",
          .roof_share = 0.5,
          .roof = "int8",
          .peers = {{.name = "A", .value = 500, .ratio = 2, .settings = "fast"},
                    {.name = "B", .value = 2000, .ratio = 0.5}}};
}

TEST(ReportTest, AJsonLineHasEveryPeer) {
  EXPECT_EQ(JsonLine(Compared()),
            R"({"name":"prefill_512","value":1000.0,"unit":"tok/s","roof_share":0.5,"roof":"int8",)"
            R"("peers":[{"name":"A","settings":"fast","value":500.0,"ratio":2.0},)"
            R"({"name":"B","settings":null,"value":2000.0,"ratio":0.5}]})");
}

TEST(ReportTest, WhatIsNotKnownIsNullInJson) {
  EXPECT_EQ(
      JsonLine({.name = "dram_read", .value = 20, .unit = "GB/s"}),
      R"({"name":"dram_read","value":20.0,"unit":"GB/s","roof_share":null,"roof":null,"peers":[]})");
}

TEST(ReportTest, AColumnStandsUnderItsName) {
  const std::vector<std::string> peers = {"A", "B"};
  const std::string header = TableHeader(peers), line = TableLine(Compared());
  EXPECT_EQ(header.find("Whit") + 4, line.find("1000.00") + 7);
  const size_t a = header.find("A"), b = header.find("B");
  EXPECT_LT(a, line.find("500.00"));
  EXPECT_LT(line.find("2.00x fast"), b);
  EXPECT_LE(b, line.find("2000.00"));
  EXPECT_NE(line.find("0.50x", b), std::string::npos);
}

TEST(ReportTest, ALineEndsWithItsLastFigure) {
  EXPECT_EQ(TableLine({.name = "dram_read", .value = 20, .unit = "GB/s"}).back(), 's');
  EXPECT_EQ(TableLine(Compared()).back(), 'x');
}

}  // namespace
}  // namespace whit
