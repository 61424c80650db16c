// What Model observes for a policy (token_signals.h).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "controller/precision_policy.h"
#include "runtime/model/model.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

struct Observed {
  float sum = 0, squares = 0, recent = 0, first_of_key = 0;
  int context = 0;
  TokenFeatures features;
};

// Decides K4V4, and remembers what it was shown of each token.
class RecordingPolicy final : public PrecisionPolicy {
 public:
  explicit RecordingPolicy(const SignalNeeds& needs) : needs_(needs) {}
  SignalNeeds needs() const override { return needs_; }
  void Decide(const LeavingTokens& tokens, absl::Span<Rung> rungs) const override {
    std::fill(rungs.begin(), rungs.end(), Rung::kK4V4);
    absl::MutexLock lock(&mutex_);
    for (int i = 0; i < tokens.count; ++i) {
      Observed seen = {.context = tokens.context, .features = {}};
      if (needs_.attention) {
        seen.sum = tokens.received.sum[i];
        seen.squares = tokens.received.squares[i];
        seen.recent = tokens.received.recent[i];
      }
      if (needs_.vectors) seen.first_of_key = tokens.keys[i * tokens.head_dim];
      if (needs_.features) seen.features = tokens.features[i];
      const bool fresh =
          seen_.emplace(std::tuple(tokens.layer, tokens.kv_head, tokens.first_position + i), seen)
              .second;
      EXPECT_TRUE(fresh) << "decided twice: " << tokens.first_position + i;
    }
  }

  using Key = std::tuple<int, int, int>;  // layer, KV head, position
  const std::map<Key, Observed>& seen() const { return seen_; }

 private:
  const SignalNeeds needs_;
  mutable absl::Mutex mutex_;
  mutable std::map<Key, Observed> seen_;
};

class SignalsTest : public ::testing::Test {
 protected:
  SignalsTest()
      : bytes_(MakeTinyModel({}).Build()),
        file_(GgufFile::Parse(bytes_).value()),
        model_(Model::Load(*file_, threads_).value()),
        pool_(PagePool::Create(
                  {.capacity_bytes = size_t{64} << 20, .head_dim = model_->config().head_dim})
                  .value()) {
    std::mt19937 rng(8);
    for (int i = 0; i < 600; ++i) tokens_.push_back(static_cast<int32_t>(rng() % 300));
  }

  // All logits, of the tokens in slices of `chunk`.
  std::vector<float> Run(const RecordingPolicy& policy, int chunk) {
    const ModelConfig& config = model_->config();
    PageTable table =
        model_->NewPageTable(*pool_, {.rung = Rung::kK8V8, .tokens = 32, .sink_rung = Rung::kFp16});
    SequenceSignals signals(policy.needs(), config.num_layers, config.num_kv_heads, 0);
    std::vector<float> logits;
    for (int first = 0; first < static_cast<int>(tokens_.size()); first += chunk) {
      const int count = std::min(chunk, static_cast<int>(tokens_.size()) - first);
      const auto rows =
          model_->Forward({{.tokens = absl::MakeConstSpan(tokens_).subspan(first, count),
                            .first_position = first,
                            .kv = &table,
                            .policy = &policy,
                            .signals = &signals,
                            .prompt_continues = first + count < static_cast<int>(tokens_.size()),
                            .logits = ForwardSlice::Logits::kAll}});
      logits.insert(logits.end(), rows.begin(), rows.end());
    }
    return logits;
  }

  ThreadPool threads_{2};
  std::vector<std::byte> bytes_;
  std::unique_ptr<GgufFile> file_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<PagePool> pool_;
  std::vector<int32_t> tokens_;
};

TEST_F(SignalsTest, EveryTokenIsDecidedOnceWithWhatItReceivedHoweverThePromptIsCut) {
  const SignalNeeds needs = {.attention = true, .vectors = true};
  const RecordingPolicy whole(needs), cut(needs);
  EXPECT_EQ(Run(whole, 512), Run(cut, 100));
  ASSERT_EQ(whole.seen().size(), cut.seen().size());
  // Sums over other parts of the queries differ by rounding alone.
  for (const auto& [key, seen] : whole.seen()) {
    const Observed& other = cut.seen().at(key);
    ASSERT_EQ(seen.context, other.context);
    ASSERT_EQ(seen.first_of_key, other.first_of_key);
    ASSERT_NEAR(seen.sum, other.sum, 1e-5 * seen.sum);
    ASSERT_NEAR(seen.squares, other.squares, 1e-5 * seen.squares);
    ASSERT_NEAR(seen.recent, other.recent, 1e-5 * seen.recent);
  }
  const ModelConfig& config = model_->config();
  const float heads = static_cast<float>(config.num_heads / config.num_kv_heads);
  // The sink's page is not decided, nor are the ring and what does not fill a page.
  const int decided = (600 - 32) / kTileTokens * kTileTokens - kTileTokens;
  EXPECT_EQ(whole.seen().size(), size_t{1} * decided * config.num_layers * config.num_kv_heads);
  for (const auto& [key, seen] : whole.seen()) {
    const int position = std::get<2>(key);
    ASSERT_GT(seen.sum, 0) << position;
    ASSERT_LE(seen.sum, heads * static_cast<float>(seen.context - position)) << position;
    ASSERT_LE(seen.squares, seen.sum);
    ASSERT_LE(seen.recent, seen.sum);
    ASSERT_GE(seen.context, position + 1 + 32);
  }
}

TEST_F(SignalsTest, FeaturesAreThoseOfTheLogitsAndTheTokens) {
  const RecordingPolicy policy({.features = true});
  const std::vector<float> logits = Run(policy, 96);
  const size_t vocab = model_->config().vocab_size;
  std::vector<double> entropy, confidence, rarity;
  std::map<int32_t, int> counts;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    double sum = 0, moment = 0, largest = 0;
    for (size_t j = 0; j < vocab; ++j) sum += std::exp(double{logits[i * vocab + j]});
    for (size_t j = 0; j < vocab; ++j) {
      const double p = std::exp(double{logits[i * vocab + j]}) / sum;
      moment += p * std::log(p);
      largest = std::max(largest, p);
    }
    entropy.push_back(-moment);
    confidence.push_back(largest);
    const double all = static_cast<double>(i), different = static_cast<double>(counts.size());
    const int count = counts.contains(tokens_[i]) ? counts[tokens_[i]] : 0;
    rarity.push_back(-std::log((count + 1) / (all + different + 1)));
    ++counts[tokens_[i]];
  }
  ASSERT_FALSE(policy.seen().empty());
  for (const auto& [key, seen] : policy.seen()) {
    const int position = std::get<2>(key);
    // Features come at the end of a pass: only then is a token decided.
    ASSERT_LT(position / 96, (seen.context - 1) / 96);
    ASSERT_NEAR(seen.features.entropy, entropy[position], 1e-3);
    ASSERT_NEAR(seen.features.confidence, confidence[position], 1e-4);
    ASSERT_NEAR(seen.features.rarity, rarity[position], 1e-5);
    ASSERT_GT(seen.features.attention_variance, 0);
    ASSERT_LT(seen.features.attention_variance, 1);
  }
}

}  // namespace
}  // namespace whit
