#include "server/cli/capacity_view.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/flag_values.h"

namespace whit {
namespace {

constexpr int kLabelColumns = 12;
constexpr int kFigureColumns = 38;  // behind a bar
constexpr int kMinBar = 8, kMaxBar = 60;
constexpr int kMaxPlot = 30;

constexpr int kGrey = 244;

std::string Colored(const std::string& text, int color, const ViewStyle& style) {
  if (!style.color || text.empty()) return text;
  return absl::StrFormat("\x1b[38;5;%dm%s\x1b[0m", color, text);
}

// From cold to hot, by the bits of keys and values together.
int ColorOf(const std::string& rung) {
  int key_bits = 16, value_bits = 16;
  std::sscanf(rung.c_str(), "K%dV%d", &key_bits, &value_bits);
  const int bits = key_bits + value_bits;
  if (bits <= 4) return 33;
  if (bits <= 6) return 38;
  if (bits <= 8) return 42;
  if (bits <= 12) return 148;
  if (bits <= 16) return 214;
  return 203;
}

std::string Repeated(std::string_view text, int count) {
  std::string repeated;
  for (int i = 0; i < count; ++i) absl::StrAppend(&repeated, std::string(text));
  return repeated;
}

std::string WithCommas(uint64_t number) {
  const std::string digits = absl::StrCat(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

double Fraction(double part, double whole) {
  return whole > 0 ? std::clamp(part / whole, 0.0, 1.0) : 0;
}

// To an eighth of a column, filled up with spaces. What is not nothing is seen.
std::string Bar(double fraction, int columns, int color, const ViewStyle& style) {
  constexpr std::array<std::string_view, 8> kEighths = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  if (columns == 0) return "";
  int eighths = static_cast<int>(std::lround(fraction * columns * 8));
  if (fraction > 0) eighths = std::max(eighths, 1);
  const std::string filled =
      Repeated("█", eighths / 8) + std::string(kEighths[static_cast<size_t>(eighths % 8)]);
  const int used = eighths / 8 + (eighths % 8 > 0 ? 1 : 0);
  return Colored(filled, color, style) + std::string(columns - used, ' ');
}

// What the pool holds, side by side.
std::string StackedBar(const v1::GetCapacityResponse& capacity, int columns,
                       const ViewStyle& style) {
  const auto whole = static_cast<double>(capacity.kv_cache_capacity_bytes());
  std::string bar;
  uint64_t bytes = 0;
  int end = 0;  // in columns: rounded sums, so that all together are as long as they should be
  const auto add = [&](uint64_t more, std::string_view cell, int color) {
    bytes += more;
    const int next =
        static_cast<int>(std::lround(Fraction(static_cast<double>(bytes), whole) * columns));
    absl::StrAppend(&bar, Colored(Repeated(cell, next - end), color, style));
    end = next;
  };
  for (const v1::RungUsage& rung : capacity.rungs()) {
    add(rung.bytes(), "█", ColorOf(rung.rung()));
  }
  add(capacity.kv_cache_reclaimable_bytes(), "▒", kGrey);
  return bar + Colored(Repeated("░", columns - end), kGrey, style);
}

std::string Plot(absl::Span<const double> values, int columns) {
  constexpr std::array<std::string_view, 8> kLevels = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  if (static_cast<int>(values.size()) > columns) values.remove_prefix(values.size() - columns);
  if (values.size() < 2) return "";
  const double highest = *std::max_element(values.begin(), values.end());
  std::string plot;
  for (const double value : values) {
    absl::StrAppend(
        &plot,
        std::string(kLevels[static_cast<size_t>(std::lround(7 * Fraction(value, highest)))]));
  }
  return plot;
}

std::string PrecisionText(const v1::GetCapacityResponse& capacity) {
  if (capacity.kv_cache_mean_bits() == 0) return "nothing cached";
  const int64_t saved = capacity.kv_cache_saved_bytes();
  return absl::StrFormat("%.2f bits, %s %s the %s of FP16", capacity.kv_cache_mean_bits(),
                         FormatByteSize(static_cast<uint64_t>(std::abs(saved))),
                         saved < 0 ? "more than" : "less than",
                         FormatByteSize(capacity.kv_cache_fp16_equivalent_bytes()));
}

std::string WaitText(double seconds) {
  return seconds == 0 ? "none" : absl::StrFormat("about %.1f s for one more", seconds);
}

}  // namespace

std::string CutToWidth(std::string_view line, int width) {
  std::string cut;
  int columns = 0;
  for (size_t i = 0; i < line.size();) {
    size_t end = i + 1;
    if (line[i] == '\x1b') {
      while (end < line.size() && line[end - 1] != 'm') ++end;
    } else {
      while (end < line.size() && (line[end] & 0xC0) == 0x80) ++end;
      if (++columns > width) {
        i = end;
        continue;
      }
    }
    absl::StrAppend(&cut, std::string(line.substr(i, end - i)));
    i = end;
  }
  return cut;
}

std::string RenderCapacity(const v1::GetCapacityResponse& capacity, const ViewStyle& style,
                           absl::Span<const double> speeds) {
  const int room = std::min(style.width - kLabelColumns - kFigureColumns - 2, kMaxBar);
  const int bar = room < kMinBar ? 0 : room;
  std::string view;
  const auto add = [&](std::string_view label, const std::string& text) {
    const std::string line = absl::StrFormat("%-*s%s", kLabelColumns, std::string(label), text);
    absl::StrAppend(&view, CutToWidth(line, style.width), "\n");
  };
  const auto add_bar = [&](std::string_view label, const std::string& cells,
                           const std::string& text) {
    add(label, bar == 0 ? text : absl::StrCat(cells, "  ", text));
  };

  const auto whole = static_cast<double>(capacity.kv_cache_capacity_bytes());
  const auto used = static_cast<double>(capacity.kv_cache_used_bytes());
  const auto reserved = static_cast<double>(capacity.kv_cache_reserved_bytes());
  const auto reclaimable = static_cast<double>(capacity.kv_cache_reclaimable_bytes());
  if (capacity.draining()) add("draining", "takes no new requests");
  const auto figures = [](uint64_t bytes, double share) {
    return absl::StrFormat("%10s %3.0f %%", FormatByteSize(bytes), 100 * share);
  };
  add_bar("KV cache", StackedBar(capacity, bar, style),
          absl::StrCat(figures(capacity.kv_cache_used_bytes(), Fraction(used, whole)), " of ",
                       FormatByteSize(capacity.kv_cache_capacity_bytes())));
  add_bar("reserved", Bar(Fraction(reserved, whole), bar, kGrey, style),
          figures(capacity.kv_cache_reserved_bytes(), Fraction(reserved, whole)));
  add_bar("reclaimable", Bar(Fraction(reclaimable, whole), bar, kGrey, style),
          figures(capacity.kv_cache_reclaimable_bytes(), Fraction(reclaimable, whole)));
  double tokens = 0;
  for (const v1::RungUsage& rung : capacity.rungs()) {
    const double share = Fraction(static_cast<double>(rung.bytes()), used);
    tokens += rung.tokens();
    add_bar(absl::StrCat("  ", rung.rung()), Bar(share, bar, ColorOf(rung.rung()), style),
            absl::StrFormat("%s %11s tokens", figures(rung.bytes(), share),
                            WithCommas(static_cast<uint64_t>(std::llround(rung.tokens())))));
  }
  add("held", absl::StrFormat("%s tokens by running requests",
                              WithCommas(static_cast<uint64_t>(std::llround(tokens)))));
  add("precision", PrecisionText(capacity));
  add("price", absl::StrFormat("%.3g", capacity.controller_price()));
  add("room for", absl::StrFormat("%s tokens (%s at the present precision)",
                                  WithCommas(capacity.headroom_tokens_floor()),
                                  WithCommas(capacity.headroom_tokens_current())));
  add("running", absl::StrFormat("%d of %d requests", capacity.requests_running(),
                                 capacity.max_running_requests()));
  add("waiting",
      absl::StrFormat("%d of %d requests, %s of %s prompt tokens", capacity.requests_waiting(),
                      capacity.max_waiting_requests(), WithCommas(capacity.waiting_prompt_tokens()),
                      WithCommas(capacity.max_waiting_prompt_tokens())));
  add("wait", WaitText(capacity.estimated_wait_seconds()));
  const std::string speed =
      absl::StrFormat("%.1f tokens/s", capacity.generated_tokens_per_second());
  const std::string plot = Plot(speeds, std::clamp(style.width - 40, 0, kMaxPlot));
  add("generating", plot.empty() ? speed : absl::StrFormat("%-16s ", speed) + plot);
  return view;
}

std::string CapacityLine(const v1::GetCapacityResponse& capacity) {
  std::string line = absl::StrFormat("KV %s of %s", FormatByteSize(capacity.kv_cache_used_bytes()),
                                     FormatByteSize(capacity.kv_cache_capacity_bytes()));
  std::string by_rung;
  for (const v1::RungUsage& rung : capacity.rungs()) {
    absl::StrAppend(&by_rung, by_rung.empty() ? "" : ", ", rung.rung(), " ",
                    FormatByteSize(rung.bytes()));
  }
  if (!by_rung.empty()) absl::StrAppend(&line, " (", by_rung, ")");
  absl::StrAppend(
      &line, absl::StrFormat(", %s, price %.3g, room for %d tokens (%d at the present "
                             "precision), running %d, waiting %d, wait %s, %.1f tokens/s",
                             PrecisionText(capacity), capacity.controller_price(),
                             capacity.headroom_tokens_floor(), capacity.headroom_tokens_current(),
                             capacity.requests_running(), capacity.requests_waiting(),
                             WaitText(capacity.estimated_wait_seconds()),
                             capacity.generated_tokens_per_second()));
  if (capacity.draining()) absl::StrAppend(&line, ", draining");
  return line;
}

}  // namespace whit
