#include "tests/bench/simulation/simulation.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <random>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/engine/stepped_engine.h"
#include "tests/bench/simulation/stand_in.h"

namespace whit {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();
constexpr absl::Duration kPatience = absl::Seconds(60);  // of clients who hang up
constexpr int kMaxExamples = 8;
constexpr int kStepsBetweenSpreads = 16;

// Mean packed bits of the decided tokens behind the first page; 0 if there are too few to compare.
double DecidedBits(const PageTable& kv, int lists, int head_dim) {
  if (kv.num_settled_tokens() < kComparedTokens) return 0;
  DecisionTally::Counts tokens{};
  for (int head = 0; head < lists; ++head) {
    const absl::Span<const PageEntry> pages = kv.pages(0, head);
    for (int i = 1; i < kv.num_settled_pages(0, head); ++i) {
      tokens[static_cast<size_t>(pages[i].rung)] += pages[i].tokens;
    }
  }
  return MeanPackedBits(tokens, head_dim);
}

class Simulator {
 public:
  Simulator(const SimulationOptions& options, const std::vector<TracedRequest>& requests)
      : options_(options), server_(options.server), requests_(requests), rng_(options.seed) {}

  absl::Status Start();
  SimulationResult Run();

 private:
  struct Client {
    std::shared_ptr<TokenSink> sink;
    uint64_t number = 0;  // while the engine has its request
    int tries = 0;
    bool gone = false;
  };
  struct Event {
    absl::Time time;
    enum Kind { kTry, kHangUp } kind = kTry;
    size_t client = 0;
    bool operator>(const Event& other) const {
      return std::tie(time, client, kind) > std::tie(other.time, other.client, other.kind);
    }
  };

  // What happens up to `end` happens while a step is under way, or while nothing runs.
  void HandleEventsUntil(absl::Time end);
  void Try(size_t client);
  void Reject(size_t client, const absl::Status& status);
  void HangUp(size_t client);
  void Complete(size_t client, const Completion& completion);

  void BeforeForward(absl::Span<const ForwardSlice> slices);
  void AfterStep(absl::Time began);
  void MeasureSpread(absl::Span<const ForwardSlice> slices);
  void CheckBounds();
  void Broken(const std::string& what);
  double Scaled(size_t bytes) const { return static_cast<double>(bytes) * server_.scale(); }

  const SimulationOptions& options_;
  const ModelledServer& server_;
  const std::vector<TracedRequest>& requests_;
  std::mt19937 rng_;
  absl::Time now_ = kStart;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<Client> clients_;
  SimulationResult result_;
  double mean_bits_ = 0;
  absl::Duration busy_places_;  // running requests times time

  std::unique_ptr<StandIn> stand_in_;
  std::unique_ptr<SteppedEngine> engine_;  // calls back: destroyed first
};

absl::Status Simulator::Start() {
  stand_in_ = std::make_unique<StandIn>(server_.lists, server_.head_dim, server_.context_length);
  EngineOptions engine = options_.engine;
  engine.kv_policy = options_.clients.policy;
  engine.kv_cache_bytes = StandInPoolBytes(engine.kv_cache_bytes, server_.scale());
  EngineObserver observer = {
      .on_step =
          [this](const StepReport& report) {
            ++result_.steps;
            result_.prompt_tokens += report.prompt_tokens;
            result_.generated_tokens += report.generated_tokens;
            for (const absl::Duration latency : report.inter_token_latencies) {
              result_.itl_seconds.values.push_back(absl::ToDoubleSeconds(latency));
            }
            CheckBounds();  // what ended with the step still has its pages
          },
      .on_completion = {},
      .on_forward = [this](absl::Span<const ForwardSlice> slices) { BeforeForward(slices); }};
  absl::StatusOr<std::unique_ptr<SteppedEngine>> created =
      SteppedEngine::Create(engine, stand_in_->model(), stand_in_->tokenizer(), std::move(observer),
                            [this] { return now_; });
  if (!created.ok()) return created.status();
  engine_ = *std::move(created);

  result_.requests = static_cast<int>(requests_.size());
  result_.capacity_bytes = static_cast<double>(options_.engine.kv_cache_bytes);
  result_.reservable_bytes = Scaled(engine_->limits().reservable_bytes);
  clients_.resize(requests_.size());
  for (size_t i = 0; i < requests_.size(); ++i) {
    const absl::Time arrival = kStart + requests_[i].arrival;
    events_.push({.time = arrival, .kind = Event::kTry, .client = i});
    if (std::uniform_real_distribution<>(0, 1)(rng_) < options_.clients.hang_up_share) {
      const double share = std::uniform_real_distribution<>(0, 1)(rng_);
      events_.push({.time = arrival + share * kPatience, .kind = Event::kHangUp, .client = i});
    }
  }
  return absl::OkStatus();
}

SimulationResult Simulator::Run() {
  while (true) {
    if (engine_->queue().state().running > 0) {
      const absl::Time began = now_;
      engine_->Step();
      AfterStep(began);
    } else if (!events_.empty()) {
      HandleEventsUntil(events_.top().time);
    } else {
      break;
    }
  }
  for (size_t i = 0; i < clients_.size(); ++i) {
    if (!clients_[i].gone) Broken(absl::StrFormat("request %d was never answered", i));
  }
  if (const size_t used = engine_->pool().stats().used_bytes; used > 0) {
    Broken(absl::StrFormat("%d bytes are held by nobody", used));
  }
  result_.duration = now_ - kStart;
  if (result_.duration > absl::ZeroDuration()) {
    result_.mean_running = absl::FDivDuration(busy_places_, result_.duration);
  }
  const KvRelief::Demotions demotions = engine_->snapshot().demotions_total;
  for (int from = 0; from < kNumRungs; ++from) {
    for (int to = 0; to < kNumRungs; ++to) {
      result_.demotions[from][to] = static_cast<int64_t>(
          std::llround(static_cast<double>(demotions[from][to]) * server_.scale()));
    }
  }
  return std::move(result_);
}

void Simulator::HandleEventsUntil(absl::Time end) {
  while (!events_.empty() && events_.top().time <= end) {
    const Event event = events_.top();
    events_.pop();
    if (clients_[event.client].gone) continue;
    now_ = event.time;
    if (event.kind == Event::kTry) {
      Try(event.client);
    } else {
      HangUp(event.client);
    }
  }
}

void Simulator::Try(size_t client) {
  ++clients_[client].tries;
  if (absl::Status status = engine_->TakeTicket(); !status.ok()) return Reject(client, status);
  const TracedRequest& traced = requests_[client];
  Request request = {.prompt = stand_in_->Prompt(traced.prompt_tokens, options_.seed + client),
                     .sampling = {.seed = 1},
                     .max_new_tokens = traced.generated_tokens,
                     .ignore_eos = true,
                     .deadline = kStart + traced.arrival + options_.clients.deadline,
                     .kv_policy = options_.clients.policy};
  clients_[client].sink = std::make_shared<TokenSink>([this, client] {
    const TokenSink::Delivery delivery = clients_[client].sink->Take();
    if (delivery.completion.has_value()) Complete(client, *delivery.completion);
  });
  const absl::StatusOr<uint64_t> number =
      engine_->Submit(std::move(request), clients_[client].sink);
  if (!number.ok()) {
    engine_->queue().ReturnTicket();
    return Reject(client, number.status());
  }
  clients_[client].number = *number;
}

void Simulator::Reject(size_t client, const absl::Status& status) {
  ++result_.rejections;
  std::string reason = RejectionReason(status);
  const std::optional<absl::Duration> retry_after = RetryAfter(status);
  if (absl::IsResourceExhausted(status)) {
    if (reason.empty() || !retry_after.has_value()) {
      Broken(absl::StrCat("a rejection without reason or estimate: ", status.ToString()));
    }
    result_.pushback_seconds.values.push_back(
        absl::ToDoubleSeconds(retry_after.value_or(absl::ZeroDuration())));
  } else if (reason.empty()) {
    if (status.message().empty()) Broken("a rejection without a message");
    reason = "invalid";  // longer than the model's context
  }
  if (retry_after.has_value() && clients_[client].tries <= options_.clients.retries) {
    // Not all who were told the same come at the same moment.
    const double jitter = std::uniform_real_distribution<>(1, 1.2)(rng_);
    events_.push({.time = now_ + *retry_after * jitter, .kind = Event::kTry, .client = client});
    return;
  }
  clients_[client].gone = true;
  ++result_.rejected[reason];
}

void Simulator::HangUp(size_t client) {
  if (clients_[client].number > 0) {
    engine_->queue().Cancel(clients_[client].number);
  } else {
    clients_[client].gone = true;  // between two tries
    ++result_.hung_up;
  }
}

void Simulator::Complete(size_t client, const Completion& completion) {
  if (clients_[client].gone) Broken("a request with two completions");
  clients_[client].gone = true;
  switch (completion.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength: {
      ++result_.finished;
      if (clients_[client].tries > 1) ++result_.finished_after_retry;
      result_.finished_request_tokens += completion.prompt_tokens + completion.completion_tokens;
      if (completion.completion_tokens != requests_[client].generated_tokens) {
        Broken(absl::StrFormat("request %d was cut short", client));
      }
      result_.true_bits.values.push_back(completion.kv.mean_bits);
      break;
    }
    case FinishReason::kCancelled:
      ++result_.hung_up;
      break;
    case FinishReason::kDeadline:
      ++(completion.completion_tokens > 0 || completion.kv.true_bytes > 0
             ? result_.expired_running
             : result_.expired_waiting);
      break;
    case FinishReason::kError:
      Broken(completion.status.ToString());
      break;
  }
  if (completion.completion_tokens > 0) {
    result_.ttft_seconds.values.push_back(absl::ToDoubleSeconds(completion.time_to_first_token));
  }
  result_.queue_seconds.values.push_back(absl::ToDoubleSeconds(completion.queue_time));
}

void Simulator::BeforeForward(absl::Span<const ForwardSlice> slices) {
  if (result_.steps % kStepsBetweenSpreads == 0) MeasureSpread(slices);
  const absl::Time end = now_ + StepTime(server_.costs, slices, mean_bits_);
  HandleEventsUntil(end);
  now_ = end;
}

void Simulator::MeasureSpread(absl::Span<const ForwardSlice> slices) {
  double least = 0, most = 0;
  int compared = 0;
  for (const ForwardSlice& slice : slices) {
    const double bits = DecidedBits(*slice.kv, server_.lists, server_.head_dim);
    if (bits == 0) continue;
    least = compared == 0 ? bits : std::min(least, bits);
    most = std::max(most, bits);
    ++compared;
  }
  if (compared >= 2) result_.spread.values.push_back(most / least);
}

void Simulator::AfterStep(absl::Time began) {
  const EngineSnapshot snapshot = engine_->snapshot();
  mean_bits_ = snapshot.mean_bits;
  if (snapshot.price > 0) {
    const bool first = result_.highest_price == 0;
    result_.least_price = first ? snapshot.price : std::min(result_.least_price, snapshot.price);
    result_.highest_price = std::max(result_.highest_price, snapshot.price);
  }
  result_.peak_running = std::max(result_.peak_running, snapshot.running);
  result_.peak_waiting = std::max(result_.peak_waiting, snapshot.waiting);
  result_.peak_waiting_prompt_tokens =
      std::max(result_.peak_waiting_prompt_tokens, snapshot.waiting_prompt_tokens);
  busy_places_ += (now_ - began) * snapshot.running;
}

void Simulator::CheckBounds() {
  const PagePoolStats pool = engine_->pool().stats();
  const AdmissionLimits& limits = engine_->limits();
  const AdmissionState state = engine_->queue().state();
  result_.peak_used_bytes = std::max(result_.peak_used_bytes, Scaled(pool.used_bytes));
  result_.peak_reserved_bytes = std::max(result_.peak_reserved_bytes, Scaled(state.reserved_bytes));
  const size_t footprint = FootprintBytes(pool, {}, server_.head_dim);
  if (footprint > limits.reservable_bytes) {
    Broken(absl::StrFormat("%d bytes in pages, %d are usable", footprint, limits.reservable_bytes));
  }
  if (state.reserved_bytes > limits.reservable_bytes) {
    Broken(
        absl::StrFormat("%d bytes reserved of %d", state.reserved_bytes, limits.reservable_bytes));
  }
  if (state.running > limits.max_running_requests) {
    Broken(absl::StrFormat("%d run, %d may", state.running, limits.max_running_requests));
  }
  if (state.waiting > limits.max_waiting_requests ||
      state.waiting_prompt_tokens > limits.max_waiting_prompt_tokens) {
    Broken(absl::StrFormat("%d requests with %d prompt tokens wait; %d with %d may", state.waiting,
                           state.waiting_prompt_tokens, limits.max_waiting_requests,
                           limits.max_waiting_prompt_tokens));
  }
}

void Simulator::Broken(const std::string& what) {
  if (result_.broken++ < kMaxExamples) {
    result_.broken_examples.push_back(
        absl::StrCat("at ", absl::FormatDuration(now_ - kStart), ": ", what));
  }
}

}  // namespace

double Distribution::Mean() const {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double Distribution::Percentile(double percent) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(percent / 100 * static_cast<double>(values.size()));
  return values[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

absl::StatusOr<SimulationResult> Simulate(const SimulationOptions& options,
                                          const std::vector<TracedRequest>& requests) {
  Simulator simulator(options, requests);
  if (absl::Status status = simulator.Start(); !status.ok()) return status;
  return simulator.Run();
}

absl::StatusOr<double> SaturatedRate(const SimulationOptions& options,
                                     const std::vector<TracedRequest>& trace,
                                     absl::Duration duration) {
  constexpr double kMoreThanEnough = 50;  // requests a second
  SimulationOptions patient = options;
  patient.clients = {.policy = options.clients.policy};
  absl::StatusOr<SimulationResult> result =
      Simulate(patient, Repeat(trace, kMoreThanEnough, duration));
  if (!result.ok()) return result.status();
  double tokens = 0;
  for (const TracedRequest& request : trace) {
    tokens += request.prompt_tokens + request.generated_tokens;
  }
  return static_cast<double>(result->finished_request_tokens) /
         absl::ToDoubleSeconds(result->duration) / (tokens / static_cast<double>(trace.size()));
}

}  // namespace whit
