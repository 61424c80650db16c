#include "server/cli/capacity_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_split.h"

namespace whit {
namespace {

using testing::HasSubstr;
using testing::Not;

void AddRung(v1::GetCapacityResponse& capacity, const std::string& name, uint64_t bytes,
             double tokens) {
  v1::RungUsage& rung = *capacity.add_rungs();
  rung.set_rung(name);
  rung.set_bytes(bytes);
  rung.set_tokens(tokens);
}

// 400 KiB: a quarter K2V2, an eighth FP16, an eighth reclaimable, half free.
v1::GetCapacityResponse Example() {
  v1::GetCapacityResponse capacity;
  capacity.set_kv_cache_capacity_bytes(400 << 10);
  capacity.set_kv_cache_used_bytes(150 << 10);
  capacity.set_kv_cache_reclaimable_bytes(50 << 10);
  capacity.set_kv_cache_reserved_bytes(300 << 10);
  AddRung(capacity, "K2V2", 100 << 10, 1234567);
  AddRung(capacity, "FP16", 50 << 10, 1000);
  capacity.set_kv_cache_mean_bits(3.625);
  capacity.set_kv_cache_fp16_equivalent_bytes(600 << 10);
  capacity.set_kv_cache_saved_bytes(400 << 10);
  capacity.set_controller_price(0.00125);
  capacity.set_headroom_tokens_floor(2000);
  capacity.set_headroom_tokens_current(1500);
  capacity.set_requests_running(3);
  capacity.set_max_running_requests(64);
  capacity.set_requests_waiting(2);
  capacity.set_max_waiting_requests(256);
  capacity.set_waiting_prompt_tokens(77);
  capacity.set_max_waiting_prompt_tokens(1 << 20);
  capacity.set_estimated_wait_seconds(2.5);
  capacity.set_generated_tokens_per_second(312.5);
  return capacity;
}

std::vector<std::string> Lines(const std::string& view) {
  std::vector<std::string> lines = absl::StrSplit(view, '\n');
  EXPECT_EQ(lines.back(), "");  // the last one ended
  lines.pop_back();
  return lines;
}

// Of text without escape sequences.
int Columns(const std::string& line) {
  int columns = 0;
  for (const char c : line) columns += (c & 0xC0) != 0x80 ? 1 : 0;
  return columns;
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(RenderCapacityTest, ShowsEveryFigure) {
  const std::string view = RenderCapacity(Example(), {.width = 92});
  EXPECT_THAT(view, HasSubstr("   150 KiB  38 % of 400 KiB\n"));
  EXPECT_THAT(view, HasSubstr("   300 KiB  75 %\n"));
  EXPECT_THAT(view, HasSubstr("100 KiB  67 %   1,234,567 tokens"));
  EXPECT_THAT(view, HasSubstr("50.0 KiB  33 %       1,000 tokens"));
  EXPECT_THAT(view, HasSubstr("held        1,235,567 tokens"));
  EXPECT_THAT(view, HasSubstr("precision   3.62 bits, 400 KiB less than the 600 KiB of FP16"));
  EXPECT_THAT(view, HasSubstr("price       0.00125"));
  EXPECT_THAT(view, HasSubstr("room for    2,000 tokens (1,500 at the present precision)"));
  EXPECT_THAT(view, HasSubstr("running     3 of 64 requests"));
  EXPECT_THAT(view, HasSubstr("waiting     2 of 256 requests, 77 of 1,048,576 prompt tokens"));
  EXPECT_THAT(view, HasSubstr("wait        about 2.5 s for one more"));
  EXPECT_THAT(view, HasSubstr("generating  312.5 tokens/s"));
  EXPECT_THAT(view, Not(HasSubstr("draining")));
  EXPECT_THAT(view, Not(HasSubstr("\x1b")));
}

TEST(RenderCapacityTest, BarsAreAsLongAsTheirShares) {
  const std::vector<std::string> lines = Lines(RenderCapacity(Example(), {.width = 92}));
  // 40 columns.
  EXPECT_THAT(lines[0], HasSubstr("KV cache    █"));
  EXPECT_EQ(Count(lines[0], "█"), 15);
  EXPECT_EQ(Count(lines[0], "▒"), 5);
  EXPECT_EQ(Count(lines[0], "░"), 20);
  EXPECT_EQ(Count(lines[1], "█"), 30);
  EXPECT_EQ(Count(lines[2], "█"), 5);
  EXPECT_EQ(Count(lines[3], "█"), 26);  // two thirds
  EXPECT_EQ(Count(lines[3], "▋"), 1);   // of 40
  v1::GetCapacityResponse tiny = Example();
  tiny.mutable_rungs(1)->set_bytes(1);
  EXPECT_EQ(Count(Lines(RenderCapacity(tiny, {.width = 92}))[4], "▏"), 1);  // still seen
}

TEST(RenderCapacityTest, NoLineIsWiderThanTheTerminal) {
  for (int width = 1; width <= 200; ++width) {
    for (const std::string& line :
         Lines(RenderCapacity(Example(), {.width = width}, {1.0, 2.0, 3.0}))) {
      EXPECT_LE(Columns(line), width) << line;
    }
  }
  EXPECT_THAT(RenderCapacity(Example(), {.width = 50}), Not(HasSubstr("█")));
  EXPECT_THAT(RenderCapacity(Example(), {.width = 50}), HasSubstr("38 % of 400 KiB"));
}

TEST(RenderCapacityTest, ColoursAddNoText) {
  const std::string coloured = RenderCapacity(Example(), {.width = 92, .color = true});
  const std::string plain = RenderCapacity(Example(), {.width = 92});
  EXPECT_NE(coloured, plain);
  std::string stripped;
  for (size_t i = 0; i < coloured.size(); ++i) {
    if (coloured[i] == '\x1b') {
      i = coloured.find('m', i);
    } else {
      stripped += coloured[i];
    }
  }
  EXPECT_EQ(stripped, plain);
  // Rungs differ in colour.
  const std::vector<std::string> lines = Lines(coloured);
  EXPECT_NE(lines[3].substr(lines[3].find('\x1b'), 10), lines[4].substr(lines[4].find('\x1b'), 10));
}

TEST(RenderCapacityTest, PlotsSpeeds) {
  EXPECT_THAT(RenderCapacity(Example(), {}, {0.0, 50.0, 100.0}), HasSubstr("tokens/s   ▁▅█\n"));
  EXPECT_THAT(RenderCapacity(Example(), {}, {0.0, 0.0}), HasSubstr("▁▁\n"));
  EXPECT_THAT(RenderCapacity(Example(), {}, {5.0}), HasSubstr("312.5 tokens/s\n"));
  // The newest of many.
  std::vector<double> many(500, 0.0);
  many.back() = 9;
  EXPECT_THAT(RenderCapacity(Example(), {}, many), HasSubstr("▁█\n"));
}

TEST(RenderCapacityTest, AnEmptyAndADrainingServer) {
  const std::string empty = RenderCapacity(v1::GetCapacityResponse(), {});
  EXPECT_THAT(empty, HasSubstr("0 B   0 % of 0 B\n"));
  EXPECT_THAT(empty, HasSubstr("wait        none\n"));
  EXPECT_THAT(empty, HasSubstr("precision   nothing cached\n"));
  v1::GetCapacityResponse draining = Example();
  draining.set_draining(true);
  draining.set_kv_cache_saved_bytes(-(2 << 10));
  EXPECT_THAT(RenderCapacity(draining, {}), HasSubstr("takes no new requests"));
  EXPECT_THAT(RenderCapacity(draining, {}), HasSubstr("2.0 KiB more than the 600 KiB of FP16"));
}

TEST(CapacityLineTest, IsOneLine) {
  EXPECT_EQ(
      CapacityLine(Example()),
      "KV 150 KiB of 400 KiB (K2V2 100 KiB, FP16 50.0 KiB), 3.62 bits, 400 KiB less than "
      "the 600 KiB of FP16, price 0.00125, room for 2000 tokens (1500 at the present precision), "
      "running 3, waiting 2, wait about 2.5 s for one more, 312.5 tokens/s");
  v1::GetCapacityResponse draining;
  draining.set_draining(true);
  EXPECT_THAT(CapacityLine(draining), HasSubstr("tokens/s, draining"));
}

TEST(CutToWidthTest, CountsCharactersAndKeepsEscapes) {
  EXPECT_EQ(CutToWidth("abc", 5), "abc");
  EXPECT_EQ(CutToWidth("abc", 2), "ab");
  EXPECT_EQ(CutToWidth("a█b", 2), "a█");
  EXPECT_EQ(CutToWidth("\x1b[38;5;33mab\x1b[0mcd", 1), "\x1b[38;5;33ma\x1b[0m");
  EXPECT_EQ(CutToWidth("", 0), "");
}

}  // namespace
}  // namespace whit
