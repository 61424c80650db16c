#include "tests/bench/measurement.h"

#include <deque>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/bench/median.h"

namespace whit {
namespace {

// Takes the times given, one a run.
class FakeRunner : public Runner {
 public:
  FakeRunner(std::deque<double> seconds, std::vector<std::pair<int, int>>* prepared)
      : seconds_(std::move(seconds)), prepared_(prepared) {}

  absl::Status Prepare(int sequences, int depth) override {
    prepared_->push_back({sequences, depth});
    return absl::OkStatus();
  }
  absl::StatusOr<double> Decode(int /*steps*/) override { return Next(); }
  absl::StatusOr<double> Prefill(int /*tokens*/) override { return Next(); }

 private:
  absl::StatusOr<double> Next() {
    if (seconds_.empty()) return absl::ResourceExhaustedError("no more runs");
    const double seconds = seconds_.front();
    seconds_.pop_front();
    return seconds;
  }

  std::deque<double> seconds_;
  std::vector<std::pair<int, int>>* const prepared_;
};

class FastestCandidateTest : public testing::Test {
 protected:
  void Add(const std::string& settings, std::deque<double> seconds) {
    peer_.candidates.push_back(
        {settings, std::make_unique<FakeRunner>(std::move(seconds), &prepared_)});
  }
  Peer peer_;
  std::vector<std::pair<int, int>> prepared_;
};

TEST_F(FastestCandidateTest, IsTheFastestAfterItsFirstRun) {
  Add("warms up fast", {1, 5});
  Add("fastest", {9, 3});
  Add("slow", {4, 4});
  const Workload decode = {"decode", Workload::Kind::kDecode, 16, 1024};
  const auto fastest = FastestCandidate(decode, 8, peer_);
  ASSERT_TRUE(fastest.ok()) << fastest.status();
  EXPECT_EQ((*fastest)->settings, "fastest");
  EXPECT_THAT(prepared_, testing::AllOf(testing::SizeIs(6), testing::Each(std::pair(16, 1024))));
}

TEST_F(FastestCandidateTest, APromptNeedsNoDepth) {
  Add("only", {1, 1});
  EXPECT_TRUE(FastestCandidate({"prefill", Workload::Kind::kPrefill, 1, 512}, 8, peer_).ok());
  EXPECT_TRUE(prepared_.empty());
}

TEST_F(FastestCandidateTest, FailsIfOneFails) {
  Add("good", {1, 1});
  Add("fails", {1});
  EXPECT_EQ(FastestCandidate({"decode", Workload::Kind::kDecode, 1, 16}, 8, peer_).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(MedianTest, IsInTheMiddle) {
  EXPECT_EQ(Median({3}), 3);
  EXPECT_EQ(Median({9, 1, 2}), 2);
  EXPECT_EQ(Median({4, 100, 2, 0}), 3);
}

}  // namespace
}  // namespace whit
