// A small feed-forward network and the means to train it.
#ifndef WHIT_CONTROLLER_CALIBRATE_NETWORK_H_
#define WHIT_CONTROLLER_CALIBRATE_NETWORK_H_

#include <Eigen/Core>
#include <cstddef>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "controller/calibrate/random.h"
#include "runtime/ops/thread_pool.h"

namespace whit {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// y = W_n relu(… relu(W_1 x + b_1) …) + b_n, for rows of inputs. Its parameters lie in the caller's
// memory: of each layer the weights [inputs][outputs], then the biases.
class Network {
 public:
  explicit Network(std::vector<int> sizes);  // of the input, the hidden layers and the output

  size_t num_parameters() const { return num_parameters_; }
  size_t weights_offset(int layer) const { return offsets_[layer]; }
  size_t biases_offset(int layer) const {
    return offsets_[layer] + size_t{1} * sizes_[layer] * sizes_[layer + 1];
  }

  // Uniform within 1 / sqrt(inputs), the last layer zero.
  void Initialize(absl::Span<float> parameters, Random& random) const;

  // What a layer gets: the first is the input, the last the network's output.
  using Activations = std::vector<Matrix>;
  // Fills activations[1 …] from activations[0].
  void Forward(absl::Span<const float> parameters, Activations& activations) const;
  // Adds to `gradient` what `slope`, of the loss by the output, means for the parameters; `slope`
  // becomes that of the loss by the input.
  void Backward(absl::Span<const float> parameters, const Activations& activations, Matrix& slope,
                absl::Span<float> gradient) const;

 private:
  const std::vector<int> sizes_;
  std::vector<size_t> offsets_;  // of each layer's parameters
  size_t num_parameters_ = 0;
};

// Minimises a loss over parameters by Adam (Kingma & Ba 2015), with the gradient clipped to length
// 1 and a learning rate that goes up and down once (Smith & Topin 2019).
struct TrainOptions {
  int steps = 0;
  float learning_rate = 0;  // at its highest
  int batch = 0;            // samples of a step
};

// `gradient_of(begin, end, gradient)` adds the gradient of the summed loss of the step's samples
// [begin, end) and may be called by several threads at once; `next` draws a step's samples. The
// result does not depend on the number of threads.
void Train(const TrainOptions& options, ThreadPool& pool, std::vector<float>& parameters,
           absl::FunctionRef<void()> next,
           absl::FunctionRef<void(int begin, int end, absl::Span<float> gradient)> gradient_of);

}  // namespace whit

#endif  // WHIT_CONTROLLER_CALIBRATE_NETWORK_H_
