#include "server/metrics/engine_metrics.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "controller/price.h"
#include "kvpool/rung.h"
#include "server/metrics/load_report.h"
#include "server/response_conversion.h"
#include "server/version.h"

namespace whit {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

ClientMetric Sample(MetricType type, double value, Labels labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return metric;
}

MetricFamily Gauge(const std::string& name, const std::string& help, double value) {
  return {"whit_" + name, help, MetricType::Gauge, {Sample(MetricType::Gauge, value)}};
}

MetricFamily Counter(const std::string& name, const std::string& help, double value) {
  return {"whit_" + name, help, MetricType::Counter, {Sample(MetricType::Counter, value)}};
}

MetricFamily GaugeByRung(const std::string& name, const std::string& help,
                         const std::function<double(int)>& value) {
  MetricFamily family{"whit_" + name, help, MetricType::Gauge, {}};
  for (int i = 0; i < kNumRungs; ++i) {
    family.metric.push_back(Sample(MetricType::Gauge, value(i),
                                   {{"rung", std::string(RungName(static_cast<Rung>(i)))}}));
  }
  return family;
}

MetricFamily CounterByRung(const std::string& name, const std::string& help,
                           const std::function<double(int)>& value) {
  MetricFamily family{"whit_" + name, help, MetricType::Counter, {}};
  for (int i = 0; i < kNumRungs; ++i) {
    family.metric.push_back(Sample(MetricType::Counter, value(i),
                                   {{"rung", std::string(RungName(static_cast<Rung>(i)))}}));
  }
  return family;
}

MetricFamily DemotionsByRungs(const KvRelief::Demotions& demotions) {
  MetricFamily family{"whit_demotions_total",
                      "Pages that a full cache made smaller, by their precision before and after",
                      MetricType::Counter,
                      {}};
  for (int from = 1; from < kNumRungs; ++from) {
    for (int to = 0; to < from; ++to) {
      family.metric.push_back(Sample(MetricType::Counter, static_cast<double>(demotions[from][to]),
                                     {{"from", std::string(RungName(static_cast<Rung>(from)))},
                                      {"to", std::string(RungName(static_cast<Rung>(to)))}}));
    }
  }
  return family;
}

// Of a page: codes and scales over its key and value elements.
double PackedBits(Rung rung, int head_dim) {
  return 8 * static_cast<double>(PageBytes(rung, head_dim)) / (2 * kTileTokens * head_dim);
}

// What does not change is told by the labels of a gauge that is always 1.
MetricFamily Info(const std::string& name, const std::string& help, Labels labels) {
  return {
      "whit_" + name, help, MetricType::Gauge, {Sample(MetricType::Gauge, 1, std::move(labels))}};
}

MetricFamily ModelInfo(const ServingModel& model) {
  const ModelConfig& config = model.config();
  return Info("model_info", "The model that is served",
              {{"name", ToUtf8(config.name)},
               {"architecture", ToUtf8(config.architecture)},
               {"parameters", std::to_string(config.num_parameters)},
               {"context_length", std::to_string(config.context_length)},
               {"kv_policy", model.engine().options().kv_policy.ToString()}});
}

}  // namespace

std::vector<MetricFamily> ToMetricFamilies(const EngineSnapshot& snapshot,
                                           const EngineOptions& options, int head_dim) {
  const PagePoolStats& pool = snapshot.pool;
  MetricFamily headroom{
      "whit_admission_headroom_tokens",
      "Tokens of new requests that could be admitted now, at their floor rung or at the present "
      "mean precision",
      MetricType::Gauge,
      {Sample(MetricType::Gauge, static_cast<double>(snapshot.headroom_tokens_floor),
              {{"precision", "floor"}}),
       Sample(MetricType::Gauge, static_cast<double>(snapshot.headroom_tokens_current),
              {{"precision", "current"}})}};
  return {
      Gauge("kv_cache_capacity_bytes", "Size of the KV cache",
            static_cast<double>(pool.capacity_bytes)),
      GaugeByRung(
          "kv_cache_used_bytes",
          "Bytes of pages that running requests hold; a page that several share counts once",
          [&](int i) { return static_cast<double>(pool.used_bytes_by_rung[i]); }),
      Gauge("kv_cache_reclaimable_bytes",
            "Bytes of pages that only the prefix cache holds; they give way to what requests need",
            static_cast<double>(pool.reclaimable_bytes)),
      Gauge("kv_cache_reserved_bytes",
            "Bytes promised to admitted requests: prompt plus max_new_tokens at their floor rung",
            static_cast<double>(snapshot.reserved_bytes)),
      Gauge("kv_cache_reservable_bytes",
            "The most that may be promised: the KV cache less the room that moving pages takes",
            static_cast<double>(snapshot.reservable_bytes)),
      Gauge(
          "kv_cache_fp16_equivalent_bytes",
          "What all cached tokens, of running requests and of the prefix cache, would take at FP16",
          static_cast<double>(snapshot.fp16_equivalent_bytes)),
      Gauge(
          "kv_cache_saved_bytes",
          "FP16-equivalent bytes less used and reclaimable bytes; below 0 while part-filled pages "
          "cost more than precision saves",
          static_cast<double>(SavedBytes(snapshot))),
      Gauge("kv_cache_bits_per_element",
            "All bytes of used and reclaimable pages over the key and value elements of all cached "
            "tokens, in bits",
            snapshot.mean_bits),
      GaugeByRung("kv_cache_tokens",
                  "Places for tokens in used pages, averaged over layers and KV heads",
                  [&](int i) { return snapshot.tokens_by_rung[i]; }),
      CounterByRung("controller_decisions_total",
                    "Precisions decided, each for one token in one layer and KV head",
                    [&](int i) { return static_cast<double>(snapshot.decisions_total[i]); }),
      DemotionsByRungs(snapshot.demotions_total),
      GaugeByRung("kv_cache_rung_bits_per_element",
                  "Codes and scales of a precision, in bits; does not change",
                  [&](int i) { return PackedBits(static_cast<Rung>(i), head_dim); }),
      Gauge("kv_cache_ceiling_bits_per_element",
            "The highest precision that a full cache still gives or keeps, in bits; 16 with room "
            "to spare",
            PackedBits(snapshot.ceiling, head_dim)),
      Gauge("controller_price",
            "What a bit costs, in units of importance: mean over the running adaptive requests",
            snapshot.price),
      Gauge("controller_pressure",
            "By how much a full cache raises the logarithm of the price: 0 with room to spare, 4 "
            "at most",
            PricePressure({.capacity_bytes = snapshot.reservable_bytes,
                           .used_bytes = snapshot.pool.used_bytes,
                           .reserved_bytes = snapshot.reserved_bytes})),
      std::move(headroom),
      Gauge("admission_utilization_ratio",
            "Share of what can be promised or can run, whichever is fuller; while requests wait, "
            "what is asked for in multiples of what runs: more than 1",
            Utilization(snapshot, options)),
      Gauge("admission_queue_requests", "Requests that wait", snapshot.waiting),
      Gauge("admission_queue_requests_limit", "The most that may wait: --max-queue-requests",
            options.max_waiting_requests),
      Gauge("admission_queue_prompt_tokens", "Prompt tokens of the requests that wait",
            static_cast<double>(snapshot.waiting_prompt_tokens)),
      Gauge("admission_queue_prompt_tokens_limit",
            "The most that may wait: --max-queue-prompt-tokens",
            static_cast<double>(options.max_waiting_prompt_tokens)),
      Gauge("admission_estimated_wait_seconds",
            "What a request that came now would wait before it runs; 0 if it would run at once",
            absl::ToDoubleSeconds(snapshot.estimated_wait)),
      Gauge("requests_running", "Requests that run", snapshot.running),
      Gauge("requests_running_limit", "The most that may run: --max-running",
            options.max_running_requests),
      Gauge("requests_waiting", "Requests that wait", snapshot.waiting),
      Counter("prompt_tokens_total", "Prompt tokens computed",
              static_cast<double>(snapshot.prompt_tokens_total)),
      Counter("generation_tokens_total", "Tokens generated",
              static_cast<double>(snapshot.generated_tokens_total)),
      Counter("prefix_cache_query_tokens_total",
              "Prompt tokens that were looked up among the prefixes of finished requests",
              static_cast<double>(snapshot.prefix_query_tokens_total)),
      Counter("prefix_cache_hit_tokens_total", "Those that were found",
              static_cast<double>(snapshot.prefix_hit_tokens_total)),
      Gauge("prefix_cache_prefixes", "Finished requests whose pages are kept",
            snapshot.cached_prefixes)};
}

std::vector<MetricFamily> ToVllmMetricFamilies(const EngineSnapshot& snapshot,
                                               const std::string& model_name) {
  const auto gauge = [](const std::string& name, const std::string& help, double value,
                        Labels labels) {
    return MetricFamily{"vllm:" + name,
                        help,
                        MetricType::Gauge,
                        {Sample(MetricType::Gauge, value, std::move(labels))}};
  };
  const Labels model = {{"model_name", model_name}};
  const double reservable = static_cast<double>(snapshot.reservable_bytes);
  return {
      gauge("num_requests_running", "Requests that run", snapshot.running, model),
      gauge("num_requests_waiting", "Requests that wait", snapshot.waiting, model),
      gauge("kv_cache_usage_perc",
            "Share of what can be promised that is promised, 1 for all: prompts plus "
            "max_new_tokens at their floor rung",
            reservable == 0 ? 0 : static_cast<double>(snapshot.reserved_bytes) / reservable, model),
      gauge("cache_config_info",
            "Tokens of a page, and pages of one list that fit at the floor rung", 1,
            {{"block_size", std::to_string(kTileTokens)},
             {"num_gpu_blocks", std::to_string(snapshot.capacity_tokens_floor / kTileTokens)}})};
}

void EngineMetrics::SetModel(const ServingModel* model) {
  absl::MutexLock lock(&mutex_);
  model_ = model;
}

std::vector<MetricFamily> EngineMetrics::Collect() const {
  std::vector<MetricFamily> families;
  absl::MutexLock lock(&mutex_);
  if (model_ != nullptr) {
    const Engine& engine = model_->engine();
    const EngineSnapshot snapshot = engine.snapshot();
    families = ToMetricFamilies(snapshot, engine.options(), model_->config().head_dim);
    families.push_back(ModelInfo(*model_));
    if (compat_ == MetricsCompat::kVllm) {
      std::ranges::move(ToVllmMetricFamilies(snapshot, ToUtf8(model_->config().name)),
                        std::back_inserter(families));
    }
  }
  families.push_back(
      Info("build_info", "The server's version", {{"version", std::string(Version())}}));
  return families;
}

}  // namespace whit
