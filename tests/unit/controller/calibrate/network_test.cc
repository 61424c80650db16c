#include "controller/calibrate/network.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace whit {
namespace {

TEST(NetworkTest, ComputesWhatItSays) {
  const Network network({2, 2, 1});
  // x W1 = (x0 + 3 x1, 2 x0 - x1), biases 1 and 0; then 2 h0 - h1 + 5.
  const std::vector<float> parameters = {1, 2, 3, -1, 1, 0, 2, -1, 5};
  ASSERT_EQ(network.num_parameters(), parameters.size());
  EXPECT_EQ(network.weights_offset(1), 6);
  EXPECT_EQ(network.biases_offset(1), 8);
  Network::Activations activations = {Matrix(2, 2)};
  activations[0] << 1, 1, -4, 1;
  network.Forward(parameters, activations);
  EXPECT_EQ(activations.back()(0, 0), 2 * 5 - 1 + 5);
  EXPECT_EQ(activations.back()(1, 0), 0 - 0 + 5);  // h = relu(0, -9)
}

TEST(NetworkTest, GradientsAreSlopes) {
  const Network network({3, 5, 4, 2});
  Random random(1);
  std::vector<float> parameters(network.num_parameters());
  for (float& p : parameters) p = static_cast<float>(random.Normal());
  Matrix input(6, 3);
  for (int i = 0; i < input.size(); ++i) input.data()[i] = static_cast<float>(random.Normal());
  const auto loss = [&] {  // half the squares of all outputs
    Network::Activations activations = {input};
    network.Forward(parameters, activations);
    return activations.back().cast<double>().squaredNorm() / 2;
  };
  Network::Activations activations = {input};
  network.Forward(parameters, activations);
  Matrix slope = activations.back();
  std::vector<float> gradient(parameters.size());
  network.Backward(parameters, activations, slope, absl::MakeSpan(gradient));
  const auto expect_slope = [&](float& x, float found) {
    const float old = x, step = 1e-3f;
    x = old + step;
    const double above = loss();
    x = old - step;
    const double below = loss();
    x = old;
    EXPECT_NEAR(found, (above - below) / (2 * step), 0.02 * std::abs(found) + 0.05);
  };
  for (size_t i = 0; i < parameters.size(); ++i) expect_slope(parameters[i], gradient[i]);
  for (int i = 0; i < input.size(); ++i) expect_slope(input.data()[i], slope.data()[i]);
}

// |x0| - x1, which no linear function comes near.
std::vector<float> Fit(ThreadPool& pool, double* error) {
  const Network network({2, 16, 1});
  Random random(1);
  std::vector<float> parameters(network.num_parameters());
  network.Initialize(absl::MakeSpan(parameters), random);
  constexpr int kBatch = 1200;  // more than one chunk, and a part of one
  Matrix inputs(kBatch, 2);
  const auto target = [](float a, float b) { return std::abs(a) - b; };
  double squares = 0;
  Train(
      {.steps = 300, .learning_rate = 0.03f, .batch = kBatch}, pool, parameters,
      [&] {
        for (int i = 0; i < inputs.size(); ++i) {
          inputs.data()[i] = static_cast<float>(random.Normal());
        }
      },
      [&](int begin, int end, absl::Span<float> gradient) {
        Network::Activations activations = {inputs.middleRows(begin, end - begin)};
        network.Forward(parameters, activations);
        Matrix slope = activations.back();
        for (int i = begin; i < end; ++i) slope(i - begin) -= target(inputs(i, 0), inputs(i, 1));
        network.Backward(parameters, activations, slope, gradient);
      });
  Network::Activations activations = {inputs};
  network.Forward(parameters, activations);
  for (int i = 0; i < kBatch; ++i) {
    const double miss = activations.back()(i, 0) - target(inputs(i, 0), inputs(i, 1));
    squares += miss * miss / kBatch;
  }
  *error = squares;
  return parameters;
}

TEST(TrainTest, FitsAndDoesNotDependOnThreads) {
  ThreadPool one(1), three(3);
  double error_of_one, error_of_three;
  const std::vector<float> a = Fit(one, &error_of_one), b = Fit(three, &error_of_three);
  EXPECT_EQ(a, b);  // bitwise
  EXPECT_LT(error_of_one, 0.01);
  EXPECT_EQ(error_of_one, error_of_three);
}

}  // namespace
}  // namespace whit
