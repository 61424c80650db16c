#include "tests/eval/arm_runner.h"
#include "tests/eval/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/support/tiny_model.h"

namespace whit::eval {
namespace {

class ArmRunnerTest : public testing::Test {
 protected:
  ArmRunnerTest()
      : bytes_(MakeTinyModel().Build()),
        file_(GgufFile::Parse(bytes_).value()),
        threads_(2),
        model_(Model::Load(*file_, threads_).value()) {}

  static Sequence RandomSequence(int tokens, uint32_t seed) {
    std::mt19937 rng(seed);
    Sequence sequence;
    for (int i = 0; i < tokens; ++i) {
      sequence.tokens.push_back(static_cast<int32_t>(rng() % 300));
      sequence.targets.push_back(static_cast<int32_t>(rng() % 300));
    }
    return sequence;
  }

  // Logits by (arm, sequence, position).
  using Logits = std::map<std::tuple<int, int, int>, std::vector<float>>;

  Logits Run(ArmRunner& runner, const std::vector<Sequence>& sequences, int batch) {
    Logits logits;
    const absl::Status status = runner.Run(
        sequences, batch,
        [&](int arm, absl::Span<const ScoredRow> rows) {
          for (const ScoredRow& row : rows) {
            EXPECT_EQ(row.target, sequences[row.sequence].targets[row.position]);
            logits[{arm, row.sequence, row.position}].assign(
                row.logits, row.logits + model_->config().vocab_size);
          }
        },
        [](int64_t) { return true; });
    EXPECT_TRUE(status.ok()) << status.message();
    return logits;
  }

  const std::vector<std::byte> bytes_;
  const std::unique_ptr<GgufFile> file_;
  ThreadPool threads_;
  const std::unique_ptr<Model> model_;
};

// What makes whit-eval's slices a measurement of decoding.
TEST_F(ArmRunnerTest, SlicesSeeWhatSingleTokensSee) {
  std::vector<float> means(size_t{1} * model_->config().num_layers * model_->config().kv_size());
  for (size_t i = 0; i < means.size(); ++i) means[i] = 0.1f * static_cast<float>(i % 7) - 0.3f;
  model_->SetKeyMeans(means);
  const Sequence sequence = RandomSequence(200, 1);
  ArmRunner runner(*model_,
                   *ParseArms("static:K4V4,static:K2V2@0,static:K2V2@16:K4V4:K4V4,static:K8V8@64,"
                              "random:K2V2=1,K4V2=1,K8V4=1,FP16=1@48:FP16",
                              {}));
  const Logits slices = Run(runner, {sequence}, 1);
  ASSERT_EQ(slices.size(), runner.arms().size() * sequence.tokens.size());

  const auto pool =
      PagePool::Create({.capacity_bytes = size_t{64} << 20, .head_dim = model_->config().head_dim})
          .value();
  for (size_t arm = 0; arm < runner.arms().size(); ++arm) {
    PageTable table = model_->NewPageTable(*pool, runner.arms()[arm].ring);
    for (int position = 0; position < 200; ++position) {
      const absl::Span<const float> single =
          model_->Forward({{.tokens = absl::MakeConstSpan(sequence.tokens).subspan(position, 1),
                            .first_position = position,
                            .kv = &table,
                            .policy = runner.arms()[arm].policy.get(),
                            .activations = ActivationFormat::kInt16}});
      ASSERT_EQ(slices.at({static_cast<int>(arm), 0, position}),
                std::vector<float>(single.begin(), single.end()))
          << runner.arms()[arm].name << ", position " << position;
    }
  }
}

TEST_F(ArmRunnerTest, SequencesDoNotSeeEachOther) {
  std::vector<Sequence> sequences;
  for (int tokens : {70, 1, 130, 16, 17, 90, 33}) {
    sequences.push_back(RandomSequence(tokens, tokens));
  }
  const std::vector<Arm> arms = *ParseArms("static:K2V2,random:K2V2=1,K8V8=1", {});
  ArmRunner one_by_one(*model_, arms), together(*model_, arms);
  const Logits expected = Run(one_by_one, sequences, 1);
  EXPECT_EQ(Run(together, sequences, 4), expected);
  EXPECT_EQ(expected.size(), 3u * (70 + 1 + 130 + 16 + 17 + 90 + 33));
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    EXPECT_DOUBLE_EQ(together.footprints()[arm].true_bits_time_averaged(),
                     one_by_one.footprints()[arm].true_bits_time_averaged());
    EXPECT_DOUBLE_EQ(together.footprints()[arm].packed_bits(),
                     one_by_one.footprints()[arm].packed_bits());
  }
}

TEST_F(ArmRunnerTest, ScoresWhatHasATarget) {
  Sequence sequence = RandomSequence(50, 2);
  std::fill(sequence.targets.begin(), sequence.targets.begin() + 37, Sequence::kNotScored);
  ArmRunner runner(*model_, *ParseArms("static:K4V4", {}));
  const Logits logits = Run(runner, {sequence}, 1);
  EXPECT_EQ(logits.size(), 2u * 13);
  EXPECT_TRUE(logits.contains({1, 0, 37}));
}

TEST_F(ArmRunnerTest, StopsWhenTold) {
  ArmRunner runner(*model_, *ParseArms("static:K4V4", {}));
  int64_t done = 0;
  const std::vector<Sequence> sequences = {RandomSequence(100, 1), RandomSequence(100, 2)};
  const auto ignore = [](int, absl::Span<const ScoredRow>) {};
  ASSERT_TRUE(runner
                  .Run(sequences, 2, ignore,
                       [&](int64_t tokens) {
                         done = tokens;
                         return tokens < 64;
                       })
                  .ok());
  EXPECT_EQ(done, 64);
  EXPECT_EQ(runner.footprints()[1].tokens_at(Rung::kFp16), 2 * 16);  // their sinks
  EXPECT_EQ(runner.footprints()[1].tokens_at(Rung::kK8V8), 2 * 16);
}

TEST_F(ArmRunnerTest, NaiveRoundingIsSeenByWhatFollowsAndCountedAtItsRung) {
  ArmRunner runner(*model_, *ParseArms("naive:K4V4,naive:K8V8,naive:K2V2", {}));
  const Logits logits = Run(runner, {RandomSequence(100, 5)}, 1);
  const auto distance = [&](int arm, int position) {
    const std::vector<float>&exact = logits.at({0, 0, position}),
          &other = logits.at({arm, 0, position});
    double sum = 0;
    for (size_t i = 0; i < exact.size(); ++i) sum += std::pow(exact[i] - other[i], 2);
    return sum;
  };
  double sums[4] = {};
  for (int arm = 1; arm <= 3; ++arm) {
    // The first page is exact while it is filled.
    for (int position = 0; position < 16; ++position) EXPECT_EQ(distance(arm, position), 0);
    for (int position = 16; position < 100; ++position) sums[arm] += distance(arm, position);
  }
  EXPECT_GT(sums[2], 0);
  EXPECT_GT(sums[1], 4 * sums[2]);
  EXPECT_GT(sums[3], 2 * sums[1]);
  const KvFootprint& four = runner.footprints()[1];
  EXPECT_EQ(four.packed_bits(), 5);  // 4 and two scales of 16 over 32 elements
  EXPECT_EQ(four.tokens_at(Rung::kK4V4), 100);
  EXPECT_EQ(four.tokens_at(Rung::kFp16), 0);
}

TEST_F(ArmRunnerTest, AdaptiveArmsPayAPriceThatIsTheirOwn) {
  ArmRunner runner(*model_, *ParseArms("adaptive:3.5,adaptive:7", {}));
  Run(runner, {RandomSequence(600, 6), RandomSequence(300, 7)}, 2);
  EXPECT_GE(runner.footprints()[1].packed_bits(), 3);
  EXPECT_LE(runner.footprints()[1].packed_bits(), runner.footprints()[2].packed_bits());
  EXPECT_LE(runner.footprints()[2].packed_bits(), 9);
}

TEST_F(ArmRunnerTest, CountsWhatWasHeld) {
  ArmRunner runner(*model_, *ParseArms("static:K4V4,static:K8V8@64:FP16,random:K2V2=1,K8V8=1", {}));
  Run(runner, {RandomSequence(16 * 10 + 5, 3)}, 1);
  const std::vector<KvFootprint>& arms = runner.footprints();
  EXPECT_EQ(arms[0].packed_bits(), 16);
  EXPECT_GT(arms[0].true_bits(), 16);
  EXPECT_EQ(arms[0].tokens_at(Rung::kFp16), 165);

  // 128 tokens have left the ring of 32, of which the sink page stays as it is.
  EXPECT_EQ(arms[1].tokens_at(Rung::kFp16), 16);
  EXPECT_EQ(arms[1].tokens_at(Rung::kK4V4), 112);
  EXPECT_EQ(arms[1].tokens_at(Rung::kK8V8), 37);
  EXPECT_EQ(arms[1].packed_bits(), 4 + 16.0 / 16);  // a 16-bit scale for 16 elements
  EXPECT_EQ(arms[2].tokens_at(Rung::kFp16), 16 + 69);
  EXPECT_EQ(arms[2].packed_bits(), 8 + 16.0 / 16);

  // By hand from what a random mix left.
  const double low = arms[3].tokens_at(Rung::kK2V2), high = 112 - low;
  EXPECT_GT(low, 40);
  EXPECT_LT(low, 72);
  EXPECT_NEAR(arms[3].packed_bits(), (low * 2 + high * 8) / 112 + 1, 1e-9);
  // Early on the sink and the ring are most of what there is.
  for (int arm : {1, 2, 3}) EXPECT_GT(arms[arm].true_bits_time_averaged(), arms[arm].true_bits());
}

TEST_F(ArmRunnerTest, HasNoPackedBitsBeforeADecision) {
  ArmRunner runner(*model_, *ParseArms("static:K4V4", {}));
  Run(runner, {RandomSequence(40, 4)}, 1);
  EXPECT_TRUE(std::isnan(runner.footprints()[1].packed_bits()));
  EXPECT_EQ(PackedBitsText(runner.footprints()[1]), "-");
}

TEST(DefaultBatchTest, FitsTheMemory) {
  ModelConfig config;
  config.num_layers = 30;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  EXPECT_EQ(ArmRunner::DefaultBatch(config, 2, 128), ArmRunner::kMaxBatch);
  EXPECT_EQ(ArmRunner::DefaultBatch(config, 5, 8192), 4);  // of 944 MB each
  EXPECT_EQ(ArmRunner::DefaultBatch(config, 50, 8192), 1);
}

}  // namespace
}  // namespace whit::eval
