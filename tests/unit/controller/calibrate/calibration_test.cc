#include "controller/calibrate/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "controller/calibrate/rung_costs.h"
#include "tests/unit/support/tiny_model.h"

namespace whit {
namespace {

using testing::HasSubstr;

struct Fixture {
  explicit Fixture(int num_threads)
      : bytes(MakeTinyModel().Build()),
        file(GgufFile::Parse(bytes).value()),
        threads(num_threads),
        model(Model::Load(*file, threads).value()) {}

  const std::vector<std::byte> bytes;
  const std::unique_ptr<GgufFile> file;
  ThreadPool threads;
  const std::unique_ptr<Model> model;
};

std::vector<CalibrationText> RandomTexts(const std::vector<int>& sizes) {
  std::mt19937 rng(1);
  std::vector<CalibrationText> texts;
  for (int size : sizes) {
    CalibrationText& text = texts.emplace_back();
    text.name = "text" + std::to_string(texts.size());
    for (int i = 0; i < size; ++i) text.tokens.push_back(static_cast<int32_t>(rng() % 90));
  }
  return texts;
}

constexpr int kSteps = 20;

absl::StatusOr<PolicyFile> RunOn(
    Fixture& fixture, const std::vector<CalibrationText>& texts,
    std::map<std::string, std::pair<size_t, size_t>>* phases = nullptr) {
  return Calibrate(*fixture.model, IdentityOf(*fixture.file, fixture.model->config()), texts,
                   {.mean_tokens = 1000,
                    .mean_context = 200,
                    .contexts = {200, 400, 100'000},
                    .tokens_of_context = 800,
                    .training_steps = kSteps},
                   [&](const CalibrationPhase& phase, size_t done, size_t total) {
                     if (phases != nullptr) (*phases)[phase.name] = {done, total};
                   });
}

TEST(CalibrateTest, FileHoldsEverythingThatControllersNeed) {
  Fixture fixture(2);
  std::map<std::string, std::pair<size_t, size_t>> phases;
  const absl::StatusOr<PolicyFile> file = RunOn(fixture, RandomTexts({4000, 1500}), &phases);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->importance.has_value());
  EXPECT_TRUE(file->learned.has_value());
  EXPECT_GT(file->prices.size(), 10);
  EXPECT_EQ(file->sensitivities.size(), 2 * 4);
  for (float sensitivity : file->sensitivities) EXPECT_GT(sensitivity, 0);
  double query_squares = 0;
  for (float x : file->importance->query_means) query_squares += x * x;
  EXPECT_GT(query_squares, 0);
  for (size_t i = 0; i + 1 < 3; ++i) {
    EXPECT_GT(file->importance->key_error[i], file->importance->key_error[i + 1]);
    EXPECT_GT(file->importance->value_error[i], file->importance->value_error[i + 1]);
  }
  // It is as a server wants it, and says how it was made.
  const auto read = ParsePolicyFile(SerializePolicyFile(*file));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->importance, file->importance);
  std::string notes;
  for (const PolicyFile::Note& note : file->notes) notes += note.name + " = " + note.value + "\n";
  for (const char* part :
       {"text = text1: 4000 tokens, ", "contexts = 200 400\n", "seed = 1\n",
        "key_energy_explained = ", "importance_loss_200 = network ",
        "importance_loss_400 = ", "kl_divergence_of_rungs = K2V2 ", "learned_accuracy = "}) {
    EXPECT_THAT(notes, HasSubstr(part));
  }
  EXPECT_EQ(phases.size(), 5);
  for (const auto& [phase, progress] : phases) EXPECT_EQ(progress.first, progress.second) << phase;
}

TEST(CalibrateTest, DoesNotDependOnThreads) {
  Fixture one(1), three(3);
  const std::vector<CalibrationText> texts = RandomTexts({3000});
  const auto a = RunOn(one, texts), b = RunOn(three, texts);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(SerializePolicyFile(*a), SerializePolicyFile(*b));
}

TEST(CalibrateTest, TooLittleTextIsAnError) {
  Fixture fixture(1);
  EXPECT_THAT(RunOn(fixture, RandomTexts({100})).status().ToString(),
              HasSubstr("INVALID_ARGUMENT: too little text"));
  EXPECT_THAT(RunOn(fixture, RandomTexts({700})).status().ToString(),
              HasSubstr("one at least must have 960"));
}

TEST(MeasureDivergenceTest, FewerBitsDivergeMore) {
  Fixture fixture(2);
  std::vector<TextWindow> windows(2);
  windows[0].tokens = RandomTexts({300})[0].tokens;
  windows[1].tokens = RandomTexts({150})[0].tokens;
  size_t done = 0;
  const auto divergence =
      MeasureDivergence(*fixture.model, windows, [&](size_t tokens) { done = tokens; });
  ASSERT_TRUE(divergence.ok()) << divergence.status();
  EXPECT_EQ(done, kDivergenceRuns * 450);
  const auto of = [&](Rung rung) { return (*divergence)[static_cast<size_t>(rung)]; };
  EXPECT_EQ(of(Rung::kFp16), 0);
  EXPECT_GT(of(Rung::kK8V8), 0);
  EXPECT_GT(of(Rung::kK8V4), of(Rung::kK8V8));
  EXPECT_GT(of(Rung::kK4V4), of(Rung::kK8V4));
  EXPECT_GT(of(Rung::kK4V2), of(Rung::kK4V4));
  EXPECT_GT(of(Rung::kK2V2), of(Rung::kK4V2));

  Fixture one(1);
  const auto same = MeasureDivergence(*one.model, windows, [](size_t) {});
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(*same, *divergence);
}

}  // namespace
}  // namespace whit
