#include "controller/calibrate/network.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace whit {
namespace {

// Samples whose gradient is summed by one thread; the sums are then added in order.
constexpr int kChunk = 512;

Eigen::Map<const Matrix> Weights(const float* from, int rows, int cols) {
  return {from, rows, cols};
}

// From 1/25 of the highest rate up to it for three tenths of the steps, then down to nothing, along
// half cosines.
float RateAt(int step, const TrainOptions& options) {
  const float peak = 0.3f * static_cast<float>(options.steps);
  const auto at = static_cast<float>(step);
  const bool rising = at < peak;
  const float low = rising ? 1.0f / 25 : 1e-5f;
  const float part =
      rising ? 1 - at / peak : (at - peak) / (static_cast<float>(options.steps) - peak);
  const float cosine = (1 + std::cos(std::numbers::pi_v<float> * part)) / 2;
  return options.learning_rate * (low + (1 - low) * cosine);
}

class Adam {
 public:
  explicit Adam(size_t parameters) : means_(parameters), squares_(parameters) {}

  void Step(float rate, absl::Span<const float> gradient, std::vector<float>& parameters) {
    constexpr float kMeanDecay = 0.9f, kSquareDecay = 0.999f, kEpsilon = 1e-8f;
    mean_weight_ *= kMeanDecay;
    square_weight_ *= kSquareDecay;
    for (size_t i = 0; i < parameters.size(); ++i) {
      means_[i] = kMeanDecay * means_[i] + (1 - kMeanDecay) * gradient[i];
      squares_[i] = kSquareDecay * squares_[i] + (1 - kSquareDecay) * gradient[i] * gradient[i];
      parameters[i] -= rate * means_[i] / (1 - mean_weight_) /
                       (std::sqrt(squares_[i] / (1 - square_weight_)) + kEpsilon);
    }
  }

 private:
  std::vector<float> means_, squares_;
  float mean_weight_ = 1, square_weight_ = 1;
};

}  // namespace

Network::Network(std::vector<int> sizes) : sizes_(std::move(sizes)) {
  for (size_t layer = 0; layer + 1 < sizes_.size(); ++layer) {
    offsets_.push_back(num_parameters_);
    num_parameters_ += size_t{1} * (sizes_[layer] + 1) * sizes_[layer + 1];
  }
}

void Network::Initialize(absl::Span<float> parameters, Random& random) const {
  for (size_t layer = 0; layer < offsets_.size(); ++layer) {
    const double bound =
        layer + 1 == offsets_.size() ? 0 : 1 / std::sqrt(static_cast<double>(sizes_[layer]));
    const size_t count = size_t{1} * (sizes_[layer] + 1) * sizes_[layer + 1];
    for (size_t i = 0; i < count; ++i) {
      parameters[offsets_[layer] + i] = static_cast<float>(bound * (2 * random.Uniform() - 1));
    }
  }
}

void Network::Forward(absl::Span<const float> parameters, Activations& activations) const {
  const size_t layers = offsets_.size();
  activations.resize(layers + 1);
  for (size_t layer = 0; layer < layers; ++layer) {
    const int inputs = sizes_[layer], outputs = sizes_[layer + 1];
    const float* from = parameters.data() + offsets_[layer];
    Matrix& out = activations[layer + 1];
    out.noalias() = activations[layer] * Weights(from, inputs, outputs);
    out.rowwise() += Weights(from + size_t{1} * inputs * outputs, 1, outputs).row(0);
    if (layer + 1 < layers) out = out.cwiseMax(0.0f);
  }
}

void Network::Backward(absl::Span<const float> parameters, const Activations& activations,
                       Matrix& slope, absl::Span<float> gradient) const {
  for (size_t layer = offsets_.size(); layer-- > 0;) {
    const int inputs = sizes_[layer], outputs = sizes_[layer + 1];
    if (layer + 1 < offsets_.size()) {
      slope = (activations[layer + 1].array() > 0).select(slope, 0.0f);
    }
    float* to = gradient.data() + offsets_[layer];
    Eigen::Map<Matrix>(to, inputs, outputs).noalias() += activations[layer].transpose() * slope;
    Eigen::Map<Matrix>(to + size_t{1} * inputs * outputs, 1, outputs) += slope.colwise().sum();
    const Matrix of_outputs = std::move(slope);
    slope.noalias() =
        of_outputs * Weights(parameters.data() + offsets_[layer], inputs, outputs).transpose();
  }
}

void Train(const TrainOptions& options, ThreadPool& pool, std::vector<float>& parameters,
           absl::FunctionRef<void()> next,
           absl::FunctionRef<void(int begin, int end, absl::Span<float> gradient)> gradient_of) {
  Adam adam(parameters.size());
  const int chunks = (options.batch + kChunk - 1) / kChunk;
  std::vector<std::vector<float>> gradients(chunks);
  for (int step = 0; step < options.steps; ++step) {
    next();
    pool.ParallelFor(chunks, 1, [&](size_t first, size_t last, int) {
      for (size_t chunk = first; chunk < last; ++chunk) {
        gradients[chunk].assign(parameters.size(), 0);
        const int begin = static_cast<int>(chunk) * kChunk;
        gradient_of(begin, std::min(begin + kChunk, options.batch),
                    absl::MakeSpan(gradients[chunk]));
      }
    });
    std::vector<float>& gradient = gradients[0];
    for (int chunk = 1; chunk < chunks; ++chunk) {
      for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += gradients[chunk][i];
    }
    double squares = 0;
    for (float& slope : gradient) {
      slope /= static_cast<float>(options.batch);
      squares += double{slope} * slope;
    }
    if (squares > 1) {
      const auto scale = static_cast<float>(1 / std::sqrt(squares));
      for (float& slope : gradient) slope *= scale;
    }
    adam.Step(RateAt(step, options), gradient, parameters);
  }
}

}  // namespace whit
