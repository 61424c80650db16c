#include "controller/calibrate/importance_samples.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "controller/calibrate/attention_observer.h"
#include "controller/calibrate/exact_run.h"
#include "controller/calibrate/key_statistics.h"
#include "controller/calibrate/random.h"
#include "controller/calibrate/token_features.h"
#include "controller/importance_features.h"
#include "kvpool/quantizer.h"

namespace whit {
namespace {

// In decode tokens leave the ring a page at a time, in prefill between blocks of attention.
constexpr int kLeavingBlocks[] = {kTileTokens, Model::kPrefillBlock};

// Tokens with fewer queries to come than this, or than a sixteenth of the window, tell nothing.
constexpr int kMinQueriesToCome = 32;

// Tokens of a window whose quantization is measured.
constexpr int kQuantizedTokens = kTileTokens;

constexpr std::array<Rung, 3> kMeasuredRungs = {Rung::kK2V2, Rung::kK4V4, Rung::kK8V8};

float SquaredLength(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// When each token of a window is decided: when the ring of a size drawn for it has been passed.
std::vector<int> DrawDecisions(int tokens, Random& random) {
  size_t sizes = 1;
  while (sizes < kRingSizes.size() && kRingSizes[sizes] <= tokens / 4) ++sizes;
  const int ring = kRingSizes[random.Below(sizes)];
  const int block = kLeavingBlocks[tokens / 4 >= kLeavingBlocks[1] ? random.Below(2) : 0];
  std::vector<int> decided_at(tokens);
  for (int j = 0; j < tokens; ++j) {
    const int passed = (j / kTileTokens + 1) * kTileTokens + ring;  // a page leaves as a whole
    decided_at[j] = std::min((passed + block - 1) / block * block, tokens);
  }
  return decided_at;
}

// At most `count` of the tokens that tell something, in order.
std::vector<int> DrawTokens(absl::Span<const int> decided_at, size_t count, Random& random) {
  const auto tokens = static_cast<int>(decided_at.size());
  std::vector<int> drawn;
  for (int j = kUncountedTokens; j < tokens; ++j) {
    if (tokens - decided_at[j] >= std::max(kMinQueriesToCome, tokens / 16)) drawn.push_back(j);
  }
  if (drawn.size() <= count) return drawn;
  random.Shuffle(drawn);
  drawn.resize(count);
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

// Sums of relative squared errors.
struct QuantizerError {
  std::array<double, 3> key = {}, value = {};
  int tokens = 0;
};

// Of rotated keys, relative to their means, and values; [count][head_dim], at most kTileTokens.
void Measure(const float* keys, const float* values, int count, int head_dim,
             QuantizerError& error) {
  const size_t elements = size_t{1} * count * head_dim;
  std::vector<float> read_keys(elements), read_values(elements);
  for (size_t i = 0; i < kMeasuredRungs.size(); ++i) {
    std::vector<std::byte> page(PageBytes(kMeasuredRungs[i], head_dim));
    WriteTokens(page.data(), kMeasuredRungs[i], head_dim, 0, count,
                {.keys = keys, .values = values, .stride = static_cast<size_t>(head_dim)}, nullptr);
    ReadTokens(page.data(), kMeasuredRungs[i], head_dim, count, nullptr, read_keys.data(),
               read_values.data());
    const auto add = [&](const float* exact, const float* read, double& sum) {
      for (int token = 0; token < count; ++token) {
        const float* x = exact + size_t{1} * token * head_dim;
        const float* y = read + size_t{1} * token * head_dim;
        float squares = 0;
        for (int d = 0; d < head_dim; ++d) squares += (x[d] - y[d]) * (x[d] - y[d]);
        sum += squares / std::max(SquaredLength(x, head_dim), 1e-12f);
      }
    };
    add(keys, read_keys.data(), error.key[i]);
    add(values, read_values.data(), error.value[i]);
  }
  error.tokens += count;
}

class SampleCollector {
 public:
  SampleCollector(const Model& model, const KeyMeans& means, absl::Span<const float> query_means)
      : config_(model.config()),
        pool_(model.thread_pool()),
        means_(means),
        query_means_(query_means),
        errors_(size_t{1} * config_.num_layers * config_.num_kv_heads) {}

  // Tokens `positions` of a window that has been observed.
  void Add(const AttentionObserver& observer, const PageTable& kv, absl::Span<const int> decided_at,
           absl::Span<const int> positions, absl::Span<const TokenFeatures> features, bool held_out,
           SamplesOfContext& to) {
    const size_t pairs = errors_.size(), count = positions.size();
    std::vector<ImportanceSample> samples(pairs * count);
    pool_.ParallelFor(pairs, 1, [&](size_t begin, size_t end, int) {
      for (size_t pair = begin; pair < end; ++pair) {
        AddPair(static_cast<int>(pair), observer, kv, decided_at, positions,
                absl::MakeSpan(samples).subspan(pair * count, count));
      }
    });
    for (size_t i = 0; i < count; ++i) {
      TokenSample token = {.features = features[positions[i]]};
      for (size_t pair = 0; pair < pairs; ++pair) {
        const ImportanceSample& sample = samples[pair * count + i];
        const std::array<float, 2> energy = sample.energy();
        for (int kv = 0; kv < 2; ++kv) token.importance[kv] += sample.importance[kv] * energy[kv];
      }
      to.tokens.push_back(token);
    }
    std::vector<ImportanceSample>& all = held_out ? to.held_out : to.learned;
    all.insert(all.end(), samples.begin(), samples.end());
  }

  QuantizerError errors() const {
    QuantizerError total;
    for (const QuantizerError& error : errors_) {
      total.tokens += error.tokens;
      for (size_t i = 0; i < error.key.size(); ++i) {
        total.key[i] += error.key[i];
        total.value[i] += error.value[i];
      }
    }
    return total;
  }

 private:
  void AddPair(int pair, const AttentionObserver& observer, const PageTable& kv,
               absl::Span<const int> decided_at, absl::Span<const int> positions,
               absl::Span<ImportanceSample> samples) {
    const int layer = pair / config_.num_kv_heads, kv_head = pair % config_.num_kv_heads;
    const int d = config_.head_dim;
    const size_t group = config_.num_heads / config_.num_kv_heads;
    const absl::Span<const float> query_means = query_means_.subspan(
        size_t{1} * layer * config_.query_size() + kv_head * group * d, group * d);
    const AttentionObserver::Sums& sums = observer.sums(layer, kv_head);
    std::vector<float> keys, values;
    kv.Read(layer, kv_head, &keys, &values);

    std::vector<float> centered(size_t{1} * kQuantizedTokens * d), quantized_values = centered;
    int quantized = 0;
    for (size_t i = 0; i < positions.size(); ++i) {
      const int j = positions[i];
      const float* key = keys.data() + size_t{1} * j * d;
      const float* value = values.data() + size_t{1} * j * d;
      const float* mean = means_.mean(KeyMeans::Block(j), layer, kv_head);
      if (quantized < kQuantizedTokens) {
        float* to = centered.data() + size_t{1} * quantized * d;
        for (int e = 0; e < d; ++e) to[e] = key[e] - mean[e];
        std::copy_n(value, d, quantized_values.data() + size_t{1} * quantized * d);
        ++quantized;
      }
      // As the policy sees the token when it leaves the ring.
      float attention = sums.attention[j], squares = sums.squares[j], recent = sums.recent[j];
      const LeavingTokens token = {
          .layer = layer,
          .kv_head = kv_head,
          .first_position = j,
          .count = 1,
          .context = decided_at[j],
          .head_dim = d,
          .received = {.sum = &attention, .squares = &squares, .recent = &recent},
          .keys = key,
          .values = value,
          .key_mean = mean};
      ImportanceFeatureBlock block;
      ExtractImportanceFeatures(token, 0, 1, query_means, &block);
      ImportanceSample& sample = samples[i];
      sample.pair = pair;
      for (int f = 0; f < kNumImportanceFeatures; ++f) sample.features[f] = block.features[f][0];
      const auto to_come = static_cast<float>(static_cast<int>(decided_at.size()) - decided_at[j]);
      sample.importance = {sums.key_importance[j] / to_come, sums.value_importance[j] / to_come};
    }
    Measure(centered.data(), quantized_values.data(), quantized, d, errors_[pair]);
  }

  const ModelConfig& config_;
  ThreadPool& pool_;
  const KeyMeans& means_;
  const absl::Span<const float> query_means_;
  std::vector<QuantizerError> errors_;  // [pair]
};

}  // namespace

std::array<float, 2> ImportanceSample::energy() const {
  return {std::exp(2 * features[static_cast<size_t>(ImportanceFeature::kKeyNorm)]),
          std::exp(2 * features[static_cast<size_t>(ImportanceFeature::kValueNorm)])};
}

absl::StatusOr<CollectedSamples> CollectSamples(Model& model, const KeyMeans& means,
                                                absl::Span<const float> query_means,
                                                absl::Span<const TextWindow> windows,
                                                const SampleOptions& options,
                                                absl::FunctionRef<void(size_t tokens)> progress) {
  std::map<int, size_t> windows_of;  // by context
  size_t longest = 0;
  for (const TextWindow& window : windows) {
    ++windows_of[window.context];
    longest = std::max(longest, window.tokens.size());
  }
  absl::StatusOr<std::unique_ptr<PagePool>> kv_pool = PoolForOneSequence(model.config(), longest);
  if (!kv_pool.ok()) return kv_pool.status();

  AttentionObserver observer(model);
  model.SetLayerProbe([&](const LayerView& view) { observer.Observe(view); });
  const absl::Cleanup unset = [&] { model.SetLayerProbe(nullptr); };
  SampleCollector collector(model, means, query_means);
  const size_t pairs = size_t{1} * model.config().num_layers * model.config().num_kv_heads;
  CollectedSamples result;
  Random random(options.seed);
  size_t done = 0;
  for (const TextWindow& window : windows) {
    const auto tokens = static_cast<int>(window.tokens.size());
    const std::vector<int> decided_at = DrawDecisions(tokens, random);
    PageTable kv = model.NewPageTable(**kv_pool, RecentRing{});
    observer.Begin(&kv, decided_at);
    TokenFeatureReader features(window.tokens);
    absl::Status status =
        RunExactly(model, window.tokens, kv, ForwardSlice::Logits::kAll,
                   [&](int, int count, absl::Span<const float> logits) {
                     features.Add(logits, model.config().vocab_size, model.thread_pool());
                     progress(done += count);
                   });
    if (!status.ok()) return status;

    const size_t most = std::max<size_t>(
        1, options.max_samples / windows_of.size() / windows_of[window.context] / pairs);
    if (result.contexts.empty() || result.contexts.back().context != window.context) {
      result.contexts.push_back(
          {.context = window.context, .learned = {}, .held_out = {}, .tokens = {}});
    }
    collector.Add(observer, kv, decided_at, DrawTokens(decided_at, most, random),
                  features.Features(observer.attention_variance()), window.held_out,
                  result.contexts.back());
  }
  const QuantizerError errors = collector.errors();
  for (size_t i = 0; i < errors.key.size(); ++i) {
    result.key_error[i] = static_cast<float>(errors.key[i] / std::max(errors.tokens, 1));
    result.value_error[i] = static_cast<float>(errors.value[i] / std::max(errors.tokens, 1));
  }
  return result;
}

}  // namespace whit
