#include "tests/eval/bit_allocation.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/unit/support/tiny_model.h"

namespace whit::eval {
namespace {

TEST(KindOfTest, GoesByTheBytesAndWhatIsBefore) {
  EXPECT_EQ(KindOf("\n\n", "end"), TokenKind::kWhitespace);
  EXPECT_EQ(KindOf(" ", "end"), TokenKind::kWhitespace);
  EXPECT_EQ(KindOf(",", "end"), TokenKind::kPunctuation);
  EXPECT_EQ(KindOf(" \"", "said,"), TokenKind::kPunctuation);
  EXPECT_EQ(KindOf("42", "a"), TokenKind::kDigits);
  EXPECT_EQ(KindOf(" 7", ","), TokenKind::kDigits);
  EXPECT_EQ(KindOf(" the", "of"), TokenKind::kWordStart);
  EXPECT_EQ(KindOf("The", "\n"), TokenKind::kWordStart);
  EXPECT_EQ(KindOf("The", ""), TokenKind::kWordStart);
  EXPECT_EQ(KindOf("ing", " walk"), TokenKind::kWordContinuation);
  EXPECT_EQ(KindOf("'s", " cat"), TokenKind::kWordContinuation);
  EXPECT_EQ(KindOf("\xA9", "\xC3"), TokenKind::kWordContinuation);  // the bytes of one character
  EXPECT_EQ(KindOf(" é", "of"), TokenKind::kWordStart);
}

class BitAllocationTest : public testing::Test {
 protected:
  static constexpr int kTokens = 165;
  BitAllocationTest()
      : bytes_(MakeTinyModel().Build()),
        file_(GgufFile::Parse(bytes_).value()),
        threads_(2),
        model_(Model::Load(*file_, threads_).value()),
        runner_(*model_, *ParseArms("random:K2V2=1,K8V8=1,static:K4V4@64:K8V8:K8V8", {})) {
    Sequence sequence;
    for (int i = 0; i < kTokens; ++i) {
      sequence.tokens.push_back(i * 7 % 300);
      // Of the decided tokens, 16 to 127, a quarter are digits.
      kinds_.push_back(i % 4 == 0 ? TokenKind::kDigits : TokenKind::kWordStart);
    }
    sequence.targets.assign(kTokens, Sequence::kNotScored);
    allocations_.assign(runner_.arms().size(), BitAllocation(model_->config()));
    const absl::Status status = runner_.Run(
        {sequence}, 1, [](int, absl::Span<const ScoredRow>) {}, [](int64_t) { return true; },
        [&](const EndedSequence& ended) {
          EXPECT_EQ(ended.true_bits, runner_.footprints()[ended.arm].true_bits());
          if (ended.arm != 0) allocations_[ended.arm].Add(ended, kinds_);
        });
    EXPECT_TRUE(status.ok()) << status.message();
  }

  const std::vector<std::byte> bytes_;
  const std::unique_ptr<GgufFile> file_;
  ThreadPool threads_;
  const std::unique_ptr<Model> model_;
  ArmRunner runner_;
  std::vector<TokenKind> kinds_;
  std::vector<BitAllocation> allocations_;  // [arm]
};

TEST_F(BitAllocationTest, DividesWhatWasDecided) {
  EXPECT_TRUE(allocations_[0].empty());
  const BitAllocation& random = allocations_[1];
  const double packed = runner_.footprints()[1].packed_bits();
  double of_pairs = 0;
  const ModelConfig& config = model_->config();
  for (int layer = 0; layer < config.num_layers; ++layer) {
    of_pairs += (random.MeanBits(layer, 0) + random.MeanBits(layer, 1)) / (2 * config.num_layers);
    // Heads draw for themselves.
    EXPECT_NE(random.MeanBits(layer, 0), random.MeanBits(layer, 1));
  }
  EXPECT_NEAR(of_pairs, packed, 1e-9);

  const ResultObject json = random.ToJson();
  EXPECT_EQ(json["by_layer_and_kv_head"][1][0], random.MeanBits(1, 0));
  const ResultObject& kinds = json["by_token_kind"];
  EXPECT_EQ(kinds["sink"], ResultObject({{"tokens", 16}, {"packed_bits", 16.0}}));
  EXPECT_EQ(kinds["digits"]["tokens"], 28);
  EXPECT_EQ(kinds["word_start"]["tokens"], 84);
  EXPECT_NEAR(kinds["digits"]["packed_bits"].get<double>() / 4 +
                  3 * kinds["word_start"]["packed_bits"].get<double>() / 4,
              packed, 1e-9);
  EXPECT_FALSE(kinds.contains("punctuation"));
}

TEST_F(BitAllocationTest, LeavesTheRingOutAndShowsTheSinkAtItsRung) {
  const ResultObject kinds = allocations_[2].ToJson()["by_token_kind"];
  EXPECT_EQ(kinds["word_start"]["tokens"], 60);  // of 16 to 95: 64 are in the ring
  EXPECT_EQ(kinds["word_start"]["packed_bits"], 5);
  EXPECT_EQ(kinds["sink"]["packed_bits"], 9);
}

}  // namespace
}  // namespace whit::eval
