#include "tests/bench/simulation/simulation_report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvpool/rung.h"

namespace whit {
namespace {

constexpr double kMiB = 1 << 20;

std::string Name(int rung) { return std::string(RungName(static_cast<Rung>(rung))); }

// fn(from, to, pages) of each pair that there was.
template <typename Fn>
void ForEachDemotion(const KvRelief::Demotions& demotions, Fn fn) {
  for (int from = 0; from < kNumRungs; ++from) {
    for (int to = 0; to < kNumRungs; ++to) {
      if (demotions[from][to] > 0) fn(Name(from), Name(to), demotions[from][to]);
    }
  }
}

std::string Times(const char* name, Distribution& times, double unit, const char* unit_name) {
  return absl::StrFormat("%-22sp50 %.3g %s, p99 %.3g %s, at most %.3g %s\n", name,
                         times.Percentile(50) * unit, unit_name, times.Percentile(99) * unit,
                         unit_name, times.Max() * unit, unit_name);
}

nlohmann::ordered_json Times(Distribution& times) {
  return {{"count", times.values.size()},
          {"mean", times.Mean()},
          {"p50", times.Percentile(50)},
          {"p99", times.Percentile(99)},
          {"max", times.Max()}};
}

}  // namespace

std::string SimulationTable(SimulationResult& r) {
  const double seconds = absl::ToDoubleSeconds(r.duration);
  std::string table;
  const auto line = [&](const char* name, const std::string& value) {
    absl::StrAppendFormat(&table, "%-22s%s\n", name, value);
  };
  line("simulated", absl::StrFormat("%.0f s, %d steps, %d prompt tokens, %d generated", seconds,
                                    r.steps, r.prompt_tokens, r.generated_tokens));
  line("requests", absl::StrCat(r.requests));
  line("  finished",
       absl::StrFormat("%d (%.3f/s), %d of them after they came back", r.finished,
                       seconds > 0 ? r.finished / seconds : 0, r.finished_after_retry));
  for (const auto& [reason, count] : r.rejected) {
    line(absl::StrCat("  rejected, ", reason).c_str(), absl::StrCat(count));
  }
  line("  expired",
       absl::StrFormat("%d in the queue, %d while they ran", r.expired_waiting, r.expired_running));
  line("  hung up", absl::StrCat(r.hung_up));
  line("broken promises", absl::StrCat(r.broken));
  for (const std::string& example : r.broken_examples) line("", example);
  line("running", absl::StrFormat("%.1f in the mean, at most %d", r.mean_running, r.peak_running));
  line("waiting", absl::StrFormat("at most %d, with %d prompt tokens", r.peak_waiting,
                                  r.peak_waiting_prompt_tokens));
  table += Times("time to first token", r.ttft_seconds, 1, "s");
  table += Times("inter-token latency", r.itl_seconds, 1000, "ms");
  table += Times("time in the queue", r.queue_seconds, 1, "s");
  if (!r.pushback_seconds.values.empty()) {
    table += Times("told to come back in", r.pushback_seconds, 1, "s");
  }
  line("KV cache",
       absl::StrFormat("at most %.1f MiB used, %.1f reserved, of %.1f; %.1f can be reserved",
                       r.peak_used_bytes / kMiB, r.peak_reserved_bytes / kMiB,
                       r.capacity_bytes / kMiB, r.reservable_bytes / kMiB));
  line("true bits at the end", absl::StrFormat("%.2f in the mean, %.2f to %.2f", r.true_bits.Mean(),
                                               r.true_bits.Percentile(0), r.true_bits.Max()));
  if (!r.spread.values.empty()) {
    line(
        "most over least bits",
        absl::StrFormat("%.2f in the mean, p99 %.2f, at most %.2f (decided tokens of requests that "
                        "run together)",
                        r.spread.Mean(), r.spread.Percentile(99), r.spread.Max()));
  }
  if (r.highest_price > 0) {
    line("price", absl::StrFormat("%.3g to %.3g", r.least_price, r.highest_price));
  }
  ForEachDemotion(r.demotions, [&](const std::string& from, const std::string& to, int64_t pages) {
    line("demoted pages", absl::StrFormat("%d from %s to %s", pages, from, to));
  });
  return table;
}

std::string SimulationJson(SimulationResult& r) {
  nlohmann::ordered_json demotions = nlohmann::ordered_json::array();
  ForEachDemotion(r.demotions, [&](const std::string& from, const std::string& to, int64_t pages) {
    demotions.push_back({{"from", from}, {"to", to}, {"pages", pages}});
  });
  const nlohmann::ordered_json json = {
      {"simulated_seconds", absl::ToDoubleSeconds(r.duration)},
      {"steps", r.steps},
      {"prompt_tokens", r.prompt_tokens},
      {"generated_tokens", r.generated_tokens},
      {"requests", r.requests},
      {"finished", r.finished},
      {"finished_after_retry", r.finished_after_retry},
      {"rejected", r.rejected},
      {"rejections", r.rejections},
      {"expired_waiting", r.expired_waiting},
      {"expired_running", r.expired_running},
      {"hung_up", r.hung_up},
      {"broken_promises", r.broken},
      {"broken_examples", r.broken_examples},
      {"mean_running", r.mean_running},
      {"peak_running", r.peak_running},
      {"peak_waiting", r.peak_waiting},
      {"peak_waiting_prompt_tokens", r.peak_waiting_prompt_tokens},
      {"ttft_seconds", Times(r.ttft_seconds)},
      {"itl_seconds", Times(r.itl_seconds)},
      {"queue_seconds", Times(r.queue_seconds)},
      {"pushback_seconds", Times(r.pushback_seconds)},
      {"capacity_bytes", r.capacity_bytes},
      {"reservable_bytes", r.reservable_bytes},
      {"peak_used_bytes", r.peak_used_bytes},
      {"peak_reserved_bytes", r.peak_reserved_bytes},
      {"true_bits",
       {{"mean", r.true_bits.Mean()},
        {"min", r.true_bits.Percentile(0)},
        {"max", r.true_bits.Max()}}},
      {"bits_spread",
       {{"mean", r.spread.Mean()}, {"p99", r.spread.Percentile(99)}, {"max", r.spread.Max()}}},
      {"price", {{"min", r.least_price}, {"max", r.highest_price}}},
      {"demotions", demotions}};
  return json.dump(2) + "\n";
}

}  // namespace whit
