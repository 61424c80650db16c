#include "tests/eval/oracle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "controller/generic_importance.h"
#include "tests/eval/arm_runner.h"
#include "tests/unit/support/tiny_model.h"

namespace whit::eval {
namespace {

using testing::Each;
using testing::Gt;

constexpr int kHeadDim = 16;

std::vector<Rung> Decide(const PrecisionPolicy& policy, int layer, int kv_head, int first) {
  std::vector<Rung> rungs(kTileTokens);
  policy.Decide({.layer = layer,
                 .kv_head = kv_head,
                 .first_position = first,
                 .count = kTileTokens,
                 .head_dim = kHeadDim},
                absl::MakeSpan(rungs));
  return rungs;
}

TEST(OraclePolicyTest, SpendsTheBudgetOnWhatLosesMost) {
  // A layer of two heads, 32 tokens after the sink: the second half of the second head matters.
  FutureLosses losses = {.num_kv_heads = 2, .first = 16, .tokens = 32};
  for (int i = 0; i < 64; ++i) {
    losses.key.push_back(i >= 48 ? 1000.0f + static_cast<float>(i) : 1e-6f);
    losses.value.push_back(losses.key.back() / 4);
  }
  const double low = PackedBits(Rung::kK2V2, kHeadDim), high = PackedBits(Rung::kK8V8, kHeadDim);
  const auto policy = MakeOraclePolicy(losses, kGenericErrors, kHeadDim, (3 * low + high) / 4);
  EXPECT_THAT(Decide(*policy, 0, 0, 16), Each(Rung::kK2V2));
  EXPECT_THAT(Decide(*policy, 0, 0, 32), Each(Rung::kK2V2));
  EXPECT_THAT(Decide(*policy, 0, 1, 16), Each(Rung::kK2V2));
  EXPECT_THAT(Decide(*policy, 0, 1, 32), Each(Rung::kK8V8));
  const auto poor = MakeOraclePolicy(losses, kGenericErrors, kHeadDim, low);
  EXPECT_THAT(Decide(*poor, 0, 1, 32), Each(Rung::kK2V2));
}

class OracleTest : public testing::Test {
 protected:
  static constexpr int kTokens = 240;
  OracleTest()
      : bytes_(MakeTinyModel().Build()),
        file_(GgufFile::Parse(bytes_).value()),
        threads_(2),
        model_(Model::Load(*file_, threads_).value()) {
    std::mt19937 rng(7);
    for (int i = 0; i < kTokens; ++i) tokens_.push_back(static_cast<int32_t>(rng() % 300));
  }

  FutureLosses Record() { return OracleRecorder(*model_).Record(tokens_, kDefaultRing).value(); }

  // Logits of all tokens, with what `policy` decides; null: of FP16.
  std::vector<float> Run(const PrecisionPolicy* policy) {
    const ModelConfig& config = model_->config();
    const auto pool =
        PagePool::Create({.capacity_bytes = size_t{64} << 20, .head_dim = config.head_dim}).value();
    PageTable kv = model_->NewPageTable(*pool, policy == nullptr ? RecentRing{} : kDefaultRing);
    std::vector<float> all;
    for (int first = 0; first < kTokens; first += kTileTokens) {
      const absl::Span<const float> logits =
          model_->Forward({{.tokens = absl::MakeConstSpan(tokens_).subspan(first, kTileTokens),
                            .first_position = first,
                            .kv = &kv,
                            .policy = policy,
                            .activations = ActivationFormat::kInt16,
                            .logits = ForwardSlice::Logits::kAll}});
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  }

  const std::vector<std::byte> bytes_;
  const std::unique_ptr<GgufFile> file_;
  ThreadPool threads_;
  const std::unique_ptr<Model> model_;
  std::vector<int32_t> tokens_;
};

TEST_F(OracleTest, CountsOnlyTheQueriesAfterTheDecision) {
  const FutureLosses losses = Record();
  EXPECT_EQ(losses.first, 16);
  ASSERT_EQ(losses.tokens, kTokens - 32 - 16);  // without ring and sink
  const size_t pairs = size_t{1} * model_->config().num_layers * model_->config().num_kv_heads;
  ASSERT_EQ(losses.key.size(), pairs * losses.tokens);
  for (size_t pair = 0; pair < pairs; ++pair) {
    for (const std::vector<float>* list : {&losses.key, &losses.value}) {
      const auto end = list->begin() + static_cast<std::ptrdiff_t>((pair + 1) * losses.tokens);
      // The last page leaves the ring with the last token.
      EXPECT_THAT(std::vector<float>(end - kTileTokens, end), Each(0));
      EXPECT_THAT(std::vector<float>(end - losses.tokens, end - kTileTokens), Each(Gt(0)));
    }
  }
  // A model's probe is its own again.
  EXPECT_EQ(Record().key, losses.key);
}

// The same bits on the tokens in reverse order cost more.
TEST_F(OracleTest, KnowsWhichTokensMatter) {
  const std::vector<float> exact = Run(nullptr);
  const auto error = [&](const FutureLosses& losses) {
    const auto policy =
        MakeOraclePolicy(losses, kGenericErrors, model_->config().head_dim, /*packed_bits=*/5);
    const std::vector<float> logits = Run(policy.get());
    double sum = 0;
    for (size_t i = 0; i < exact.size(); ++i) sum += std::pow(logits[i] - exact[i], 2);
    return sum;
  };
  const FutureLosses losses = Record();
  FutureLosses reversed = losses;
  for (size_t begin = 0; begin < losses.key.size(); begin += losses.tokens) {
    for (std::vector<float>* list : {&reversed.key, &reversed.value}) {
      const auto first = list->begin() + static_cast<std::ptrdiff_t>(begin);
      std::reverse(first, first + losses.tokens);
    }
  }
  EXPECT_GT(error(losses), 0);
  EXPECT_LT(1.3 * error(losses), error(reversed));
}

TEST_F(OracleTest, RunsAsAnArmAtItsBudget) {
  ArmRunner runner(*model_, *ParseArms("oracle:4,oracle:6,oracle:6@64", {}));
  std::vector<Sequence> sequences = {{.tokens = tokens_}, {.tokens = tokens_}};
  std::reverse(sequences[1].tokens.begin(), sequences[1].tokens.end());
  for (Sequence& sequence : sequences) sequence.targets.assign(kTokens, Sequence::kNotScored);
  ASSERT_TRUE(
      runner
          .Run(
              sequences, 2, [](int, absl::Span<const ScoredRow>) {}, [](int64_t) { return true; })
          .ok());
  EXPECT_NEAR(runner.footprints()[1].packed_bits(), 4, 0.05);
  EXPECT_NEAR(runner.footprints()[2].packed_bits(), 6, 0.05);
  EXPECT_LE(runner.footprints()[2].packed_bits(), 6);
  EXPECT_GT(runner.footprints()[3].true_bits(), runner.footprints()[2].true_bits());
}

}  // namespace
}  // namespace whit::eval
