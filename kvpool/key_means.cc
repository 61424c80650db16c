#include "kvpool/key_means.h"

#include <cmath>
#include <utility>

#include "kvpool/quantizer.h"

namespace whit {

KeyMeans::KeyMeans(Shape shape, std::vector<float> means)
    : shape_(std::move(shape)), means_(std::move(means)) {}

void KeyMeans::Prepare(int num_positions) {
  const size_t needed = (num_positions + kBlockPositions - 1) / kBlockPositions;
  const size_t pairs = shape_.inverse_frequencies.size();
  std::vector<double> cosines(pairs), sines(pairs);
  while (blocks_.size() < needed) {
    // The average of e^(i p f) over the block is the middle position's, shortened by the Dirichlet
    // kernel sin(n f / 2) / (n sin(f / 2)).
    const double middle =
        static_cast<double>(blocks_.size()) * kBlockPositions + (kBlockPositions - 1) / 2.0;
    for (size_t i = 0; i < pairs; ++i) {
      const double f = shape_.inverse_frequencies[i];
      const double half = std::sin(f / 2);
      const double shrink = std::abs(half) < 1e-12
                                ? 1.0
                                : std::sin(kBlockPositions * f / 2) / (kBlockPositions * half);
      cosines[i] = shrink * std::cos(middle * f);
      sines[i] = shrink * std::sin(middle * f);
    }
    std::vector<float> block = means_;
    for (size_t head = 0; head < block.size(); head += shape_.head_dim) {
      float* mean = block.data() + head;
      for (size_t i = 0; i < pairs; ++i) {
        const double a = mean[2 * i], b = mean[2 * i + 1];
        mean[2 * i] = static_cast<float>(a * cosines[i] - b * sines[i]);
        mean[2 * i + 1] = static_cast<float>(a * sines[i] + b * cosines[i]);
      }
      RotateHadamard(mean, shape_.head_dim);
    }
    blocks_.push_back(std::move(block));
  }
}

}  // namespace whit
